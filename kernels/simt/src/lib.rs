//! Executes the *text* of a kernel on the CPU and checks everything it does.
//!
//! Enters: a [`Launch`], that is WGSL or PTX as emitted with the content of its buffers. Leaves: an [`Outcome`] with the
//! buffers afterwards, exact [`Counters`], and every [`Violation`]: accesses outside a buffer or misaligned, reads of
//! what nothing wrote, data races, divergent barriers, infinities born of finite numbers, endless loops. How a text came
//! about is not known here: this crate shares no code and no table with the emitters, so that a mistake made there is not
//! made again.
//!
//! Both languages are lowered to one list of micro-operations, which warps of 32 lanes run in lockstep. Two accesses
//! race if different *threads* make them within one barrier interval, whatever the order in which they happened here.
#![forbid(unsafe_code)]

mod access;
mod approx;
mod async_copy;
mod collective;
mod counters;
mod error;
mod exec;
mod halves;
mod inherited;
mod launch;
mod live;
mod machine;
mod math;
mod mbarrier;
mod memory;
mod mma;
mod op;
mod ptx;
mod report;
mod shadow;
mod tensor;
mod warpgroup;
mod watch;
mod wgsl;

pub use counters::{Class, Counters};
pub use error::Error;
pub use launch::{Argument, Buffer, Language, Launch, Options, Outcome, Region, Swizzle, TensorMap, Texture};
pub use report::{Address, Thread, Violation, ViolationKind};

/// Runs a launch.
///
/// What the kernel does wrong comes back as violations; an error means that it could not be run at all.
///
/// # Errors
/// [`Error::Text`] for text that does not parse, [`Error::Unsupported`] for what is not executed here,
/// [`Error::Launch`] where arguments or geometry do not fit the text.
pub fn run(launch: &Launch<'_>, options: &Options) -> Result<Outcome, Error> {
    let program = match launch.language {
        Language::Wgsl => wgsl::lower(launch, options)?,
        Language::Ptx => ptx::lower(launch)?,
    };
    check(launch, options, &program)?;
    Ok(machine::Machine::new(&program, launch, options).run(launch))
}

fn check(launch: &Launch<'_>, options: &Options, program: &op::Program) -> Result<(), Error> {
    let fail = |reason: String| Err(Error::Launch { kernel: launch.kernel.to_owned(), reason });
    if program.workgroup != launch.workgroup {
        return fail(format!("workgroup {:?} in the text, {:?} in the launch", program.workgroup, launch.workgroup));
    }
    let threads = program.workgroup.iter().map(|n| u64::from(*n)).product::<u64>();
    if threads == 0 || threads > 1024 {
        return fail(format!("{threads} threads in a workgroup"));
    }
    if !matches!(options.subgroup_size, 4 | 8 | 16 | 32) {
        return fail(format!("subgroups of {}", options.subgroup_size));
    }
    for s in &program.segments {
        if let op::Origin::Argument(a) = s.origin
            && launch.arguments.get(a).is_none()
        {
            return fail(format!("no argument {a} for `{}`", s.name));
        }
    }
    Ok(())
}
