//! The only editor of a graph.
