//! The `frit` command. One file a verb; only this folder prints and exits.
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[cfg(feature = "compiler")]
mod analyze;
mod at;
#[cfg(feature = "compiler")]
mod bench;
#[cfg(feature = "compiler")]
mod bisect;
mod chat;
#[cfg(feature = "compiler")]
mod check;
mod compile;
#[cfg(feature = "compiler")]
mod devices;
mod diff;
mod draw;
mod embed;
mod expect;
mod explain;
mod generate;
mod inspect;
mod model;
#[cfg(feature = "compiler")]
mod policy;
mod run;
#[cfg(feature = "compiler")]
mod similar;
#[cfg(feature = "compiler")]
mod switches;
#[cfg(feature = "compiler")]
mod transform;
#[cfg(feature = "compiler")]
mod tune;
#[cfg(feature = "verify")]
mod verify;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Fuses transformer graphs to GPU kernels, explains every decision, and runs them.
#[derive(Parser)]
#[command(name = "frit", version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Continue a prompt and print the text as it comes.
    Generate(generate::Args),
    /// Talk with a model through its chat template.
    Chat(chat::Args),
    /// Run a model on tensors from an .npz file.
    Run(run::Args),
    /// Make one vector of each text.
    Embed(embed::Args),
    /// Say everything that stands in the way of running a model; exit 1 if there is anything.
    #[cfg(feature = "compiler")]
    Check(check::Args),
    /// Compile a model ahead of time to one .frit file.
    Compile(compile::Args),
    /// Say what was fused, what was not, and why.
    Explain(explain::Args),
    /// Edit a model's weights and layers: tie, prune, merge, share, fold.
    #[cfg(feature = "compiler")]
    Transform(transform::Args),
    /// Measure how much layers matter.
    #[cfg(feature = "compiler")]
    Analyze(analyze::Args),
    /// Say what two plans do differently; with --calib, how far the answers of two models are apart.
    Diff(diff::Args),
    /// Show weights, cache, programs and kernels.
    Inspect(inspect::Args),
    /// Time decode, prefill, an encoder or a matrix product on any backend.
    #[cfg(feature = "compiler")]
    Bench(bench::Args),
    /// Measure on a device which kinds of fusion make a model slower, and write down those that do.
    #[cfg(feature = "compiler")]
    Tune(tune::Args),
    /// Execute every kernel's text on the CPU with all checks, and compare with the CPU backend.
    #[cfg(feature = "verify")]
    Verify(verify::Args),
}

/// Ends quietly when whoever reads the output has gone, as `head` does.
fn end_with_the_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<String>().map_or("", String::as_str);
        if text.starts_with("failed printing to stdout") && text.contains("Broken pipe") {
            std::process::exit(0);
        }
        usual(info);
    }));
}

/// Keeps Mesa's layer for device selection, which Frit does itself, from asking a display server that is not there: it
/// would complain on standard error of every run.
fn quiet_without_display() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() && std::env::var_os("NODEVICE_SELECT").is_none() {
        // SAFETY: `main` calls this first, and no other thread has been started that could read the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

fn main() -> ExitCode {
    quiet_without_display();
    end_with_the_reader();
    let done = match Cli::parse().verb {
        Verb::Generate(a) => generate::main(&a),
        Verb::Chat(a) => chat::main(&a),
        Verb::Run(a) => run::main(&a),
        Verb::Embed(a) => embed::main(&a),
        #[cfg(feature = "compiler")]
        Verb::Check(a) => match check::main(&a) {
            Ok(code) => return code,
            Err(e) => Err(e),
        },
        Verb::Compile(a) => compile::main(&a),
        Verb::Explain(a) => explain::main(&a),
        #[cfg(feature = "compiler")]
        Verb::Transform(a) => transform::main(&a),
        #[cfg(feature = "compiler")]
        Verb::Analyze(a) => analyze::main(&a),
        Verb::Diff(a) => match diff::main(&a) {
            Ok(code) => return code,
            Err(e) => Err(e),
        },
        Verb::Inspect(a) => inspect::main(&a),
        #[cfg(feature = "compiler")]
        Verb::Bench(a) => bench::main(&a),
        #[cfg(feature = "compiler")]
        Verb::Tune(a) => tune::main(&a),
        #[cfg(feature = "verify")]
        Verb::Verify(a) => verify::main(&a),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let mut text = String::new();
            for cause in e.chain() {
                let cause = cause.to_string();
                if !text.contains(&cause) {
                    text.push_str(if text.is_empty() { "" } else { ": " });
                    text.push_str(&cause);
                }
            }
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
    }
}
