//! Tests of the kernel IR as a whole.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod builder;
mod interpret;
mod random;
mod text;
mod tiles;
mod verify;
mod warpgroups;

use super::{Error, Module, Rule};
use crate::target::{Capabilities, Tier};

/// Base limits with every optional feature.
pub(crate) fn everything() -> Capabilities {
    Capabilities { has_f16: true, has_matrix: true, subgroup_size: Some(32), ..Capabilities::webgpu(Tier::Gpu) }
}

/// The rules that a module breaks for a target.
pub(crate) fn broken(module: &Module, caps: &Capabilities) -> Vec<Rule> {
    match super::verify(module, caps) {
        Ok(()) => Vec::new(),
        Err(Error::Invalid { violations, .. }) => violations.iter().map(|v| v.rule).collect(),
        Err(other) => panic!("{other}"),
    }
}

/// Verifies, emits for a native consumer, and has naga validate the text.
pub(crate) fn checked_wgsl(module: &Module) -> String {
    super::verify(module, &everything()).unwrap_or_else(|e| panic!("{e}\n{}", super::print(module)));
    let mut texts = Vec::new();
    for packed_4x8 in [false, true] {
        let options = crate::emit::wgsl::Options { packed_4x8, ..Default::default() };
        let text =
            crate::emit::wgsl::emit(module, &options).unwrap_or_else(|e| panic!("{e}\n{}", super::print(module)));
        validate(&text);
        texts.push(text);
    }
    texts.swap_remove(0)
}

fn validate(text: &str) {
    use naga::valid::{Capabilities, ValidationFlags, Validator};
    let module = naga::front::wgsl::parse_str(text).unwrap_or_else(|e| panic!("{}\n{text}", e.emit_to_string(text)));
    let capabilities = Capabilities::SHADER_FLOAT16 | Capabilities::SHADER_FLOAT16_IN_FLOAT32 | Capabilities::SUBGROUP;
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    if let Err(e) = validator.validate(&module) {
        panic!("{}\n{text}", e.emit_to_string(text));
    }
}

pub(crate) use random::random_module;
