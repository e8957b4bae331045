//! Graphviz pictures of graphs.
