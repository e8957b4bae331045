//! The `.kir` text form.
//!
//! Sigils tell names apart: `%` a local, `@` an array, `$` a uniform block; machine values and operations are bare words.
//! `//` starts a remark that the parser skips; comments of the kernel itself are statements.
//!
//! ```text
//! kernel double
//! workgroup_size 64 1 1
//! buffer @x binding 0 read f32
//! buffer @y binding 1 read_write f32
//! body {
//!   let %i: u32 = global_id.x
//!   if lt(%i, 1000u) {
//!     store @y[%i] = mul(@x[%i], 2.0f)
//!   }
//! }
//! ```

mod lex;
mod parse;
mod print;
mod warpgroup;

pub use parse::parse;
pub use print::print;

use super::expr::{Axis, Builtin};

/// Spelling of a machine value.
fn builtin_name(builtin: Builtin) -> String {
    match builtin {
        Builtin::WorkgroupId(axis) => format!("workgroup_id.{}", axis.name()),
        Builtin::LocalId(axis) => format!("local_id.{}", axis.name()),
        Builtin::GlobalId(axis) => format!("global_id.{}", axis.name()),
        Builtin::NumWorkgroups(axis) => format!("num_workgroups.{}", axis.name()),
        Builtin::LocalIndex => "local_index".to_owned(),
        Builtin::SubgroupLane => "subgroup_lane".to_owned(),
        Builtin::SubgroupSize => "subgroup_size".to_owned(),
    }
}

fn builtins() -> Vec<Builtin> {
    let mut all = vec![Builtin::LocalIndex, Builtin::SubgroupLane, Builtin::SubgroupSize];
    for axis in Axis::ALL {
        all.extend([
            Builtin::WorkgroupId(axis),
            Builtin::LocalId(axis),
            Builtin::GlobalId(axis),
            Builtin::NumWorkgroups(axis),
        ]);
    }
    all
}
