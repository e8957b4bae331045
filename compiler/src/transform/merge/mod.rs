//! Weights computed from weights: layers merged, products and adapters folded, widths projected, ranks lowered.

mod adapters;
pub mod blend;
pub mod convs;
mod fold_neurons;
mod fold_norms;
mod fuse_heads;
mod layers;
mod low_rank;
mod project;
mod recurse;

pub use adapters::{FoldAdapters, MergeLinears};
pub use fold_neurons::{Cluster, Fold};
pub use fold_norms::FoldNorms;
pub use fuse_heads::FuseHeads;
pub use layers::{MergeLayers, Method};
pub use low_rank::LowRank;
pub use project::Project;
pub use recurse::{Recurse, RecurseInit};
