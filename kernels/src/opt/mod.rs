//! Passes on the kernel IR. Each takes a verified module and returns a verified module that means the same.

mod rewrite;
mod unused;

use crate::ir::Module;

/// Folds constants, replaces names of constants and of other names by what they stand for, resolves constant branches
/// and short loops, and drops values that nothing uses.
///
/// Pre: verified. Post: verified, in compact form. class: exact.
///
/// ```text
/// let %n: u32 = mul(4u, 8u)          for %i: u32 = 0u to 32u step 1u {
/// for %i: u32 = 0u to %n step 1u {   =>   ...
/// ```
pub fn simplify(module: &Module) -> Module {
    unused::drop_unused(rewrite::rewrite(module, false))
}

/// [`simplify`], and repeats the body of each loop that asks for it and has constant bounds with few trips.
///
/// Pre: verified. Post: verified, in compact form. class: exact.
pub fn unroll(module: &Module) -> Module {
    unused::drop_unused(rewrite::rewrite(module, true))
}
