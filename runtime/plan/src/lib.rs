//! The artifact: what a compiled model is, with no compiler and no device in it.
//!
//! A [`Plan`] lists dynamic sizes, weights, cache slots, kernels and programs. A [`Program`] is a straight list of
//! kernel launches over buffers whose sizes are symbolic; binding sizes turns it into something a backend replays.
#![forbid(unsafe_code)]

mod buffer;
mod cost;
mod drawing;
pub mod format;
mod kernel;
pub mod limits;
mod lock;
mod model;
mod plan;
mod report;
mod reuse;
mod validate;
mod weights;

pub use buffer::{BufferRef, KvPart, KvSlotDecl, SlotLayout, StateDecl, ValueDecl};
pub use cost::Rates;
pub use drawing::{Drawing, DrawnBlock, DrawnEdge, DrawnOp};
pub use kernel::{Kernel, Matrix, Schedule, Variant};
pub use lock::lock_changes;
pub use model::{ChatInfo, InputFill, ModelInfo, Passes, Port, Retention, Task, WritingRules};
pub use plan::{Instead, PLAN_VERSION, Plan, Program, RAN, SizeDecl, Step, sizes};
pub use report::{
    AppliedRewrite, AttentionCount, BucketDecision, Condition, Crossover, ExactSearch, FusionReport, InPlace,
    LayerCount, Ledger, PhaseReport, RefusedEdge, RegionReport, Validation, Verdict,
};
pub use reuse::{ALIAS, AliasPoint, Reuse};
pub use validate::{PlanError, StoredShape};
pub use weights::{Part, Placement, RopePart, TensorData, TensorSource, WeightDecl, WeightSource, repack};
