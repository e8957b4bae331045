//! The architectures: one file a family, which reads its configuration and says which tensor goes where, over the
//! shared blocks. A family is registered by a line for each of its classes in the table of its folder.

pub(super) mod decoders;
mod encoders;
mod seq2seq;
mod vision;

use super::registry::Class;

/// Every class that is read.
pub(super) fn classes() -> impl Iterator<Item = &'static Class> {
    [decoders::CLASSES, encoders::CLASSES, seq2seq::CLASSES, vision::CLASSES].into_iter().flatten()
}
