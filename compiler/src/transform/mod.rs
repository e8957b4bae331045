//! Edits of checkpoints: weights tied, layers removed, merged and reordered, before anything is compiled.
//!
//! What enters: a [`Checkpoint`], which is a configuration and a stock of tensors known by their roles. What leaves: the
//! same, edited, as a directory that is loaded like any other. A step either changes the checkpoint as its formula says
//! or refuses with everything that stands in its way; numbers are computed in f64 and rounded once. What a step needs to
//! know of a running model comes through [`Activations`]; nothing here runs one.

pub mod analyze;
mod calibration;
pub mod capture;
mod checkpoint;
pub mod dense;
pub mod edit;
mod error;
pub mod extension;
pub mod family;
mod gguf;
mod layer_list;
pub mod linalg;
mod linear;
pub mod merge;
pub mod onnx;
mod open;
mod rearrange;
pub mod recipe;
mod save;
mod sizes;
pub mod slots;
pub mod step;
pub mod tie;

pub use calibration::{Activations, Aid, Captured, Metric, Tap};
pub use checkpoint::{BufferId, Bytes, Checkpoint};
pub use error::{Error, Result};
pub use extension::Extension;
pub use layer_list::LayerList;
pub use linear::Linear;
pub use recipe::{Recipe, Report};
pub use save::Tied;
pub use sizes::Sizes;
pub use step::Step;
pub use tie::pattern::Pattern;

/// One edit.
pub trait Transform {
    /// Its name on the command line.
    fn name(&self) -> &'static str;
    /// Applies it and says what it did, one line each. After an error the checkpoint is in no useful state; a
    /// [`Recipe`] keeps the one from before.
    ///
    /// # Errors
    /// Everything that stands in its way.
    fn apply(&self, checkpoint: &mut Checkpoint, aid: &Aid<'_>) -> Result<Vec<String>>;
}
