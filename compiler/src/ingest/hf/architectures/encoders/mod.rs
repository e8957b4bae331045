//! Models that give one row for each token of a text.

mod bert;

use super::super::registry::Class;

/// Class, `model_type` and reader.
pub(super) const CLASSES: &[Class] = &[
    Class::new("BertModel", "bert", |f| bert::read(f, false)),
    Class::new("BertForMaskedLM", "bert", |f| bert::read(f, true)),
];
