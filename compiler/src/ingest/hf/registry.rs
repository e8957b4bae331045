//! What an architecture is to the loader: a class with a reader, a configuration that binds tensors, a network that
//! builds graphs.

use super::fields::Fields;
use crate::ingest::bind::Binder;
use crate::ingest::blocks::Decoder;
use crate::ingest::builder::ModelBuilder;
use crate::ingest::error::Gap;
use crate::ingest::policy::RunPolicy;
use crate::ingest::recipe::{self, Recipe};
use crate::transform::extension::Extension;

/// A class of transformers that is read.
pub(crate) struct Class {
    /// Its name, as `architectures` holds it.
    pub class: &'static str,
    /// Its `model_type`. The first class of a type stands for it where `architectures` is missing.
    pub model_type: &'static str,
    /// Reads its configuration; what is wrong is left in the fields.
    pub read: Reader,
    /// Whether the configuration may say that the model is both an encoder and a decoder.
    pub encoder_decoder: bool,
}

/// From the fields of a configuration to an architecture.
pub(crate) type Reader = fn(&mut Fields<'_>) -> Box<dyn Architecture>;

/// The configuration of a model.
pub(crate) trait Architecture: std::fmt::Debug {
    /// Binds the tensors of a model; what is wrong is left in the binder.
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network>;
    /// Takes what the object `frit` of the configuration says; what the architecture does not serve is a gap.
    fn extend(&mut self, extension: Extension) -> Vec<Gap> {
        match extension.is_empty() {
            true => Vec::new(),
            false => vec![Gap::field("config.json", "frit", "is not served for this architecture", "remove it")],
        }
    }
    /// Whether a tensor that no place asked for may be there: buffers of old versions, heads that are not used.
    fn ignorable(&self, name: &str) -> bool;
}

/// A model whose tensors are bound.
pub(crate) trait Network {
    /// Declares sizes and states, and adds the ways to run the model.
    fn build(&self, m: &mut ModelBuilder);
    /// Takes a policy; what the model cannot do is a gap.
    fn set_policy(&mut self, policy: &RunPolicy) -> Vec<Gap> {
        match *policy == RunPolicy::default() {
            true => Vec::new(),
            false => vec![Gap::field("the run policy", "policy", "is for decoders alone", "run this model whole")],
        }
    }
    /// The longest sequence, where the caller may lower it.
    fn context(&mut self) -> Option<&mut u64> {
        None
    }
}

impl Class {
    pub(crate) const fn new(class: &'static str, model_type: &'static str, read: Reader) -> Class {
        Class { class, model_type, read, encoder_decoder: false }
    }
}

impl Network for Decoder {
    fn build(&self, m: &mut ModelBuilder) {
        Decoder::build(self, m);
    }
    fn context(&mut self) -> Option<&mut u64> {
        Some(&mut self.context)
    }
    fn set_policy(&mut self, policy: &RunPolicy) -> Vec<Gap> {
        Decoder::set_policy(self, policy)
    }
}

impl Architecture for Recipe {
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network> {
        Box::new(recipe::decoder(self, t))
    }
    fn extend(&mut self, extension: Extension) -> Vec<Gap> {
        Recipe::extend(self, extension)
    }
    fn ignorable(&self, name: &str) -> bool {
        Recipe::ignorable(self, name)
    }
}
