//! The `frit` command. One file a verb; only this folder prints and exits.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod compile;
mod explain;
mod generate;
mod inspect;
mod model;
mod run;
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
    /// Run a model on tensors from an .npz file.
    Run(run::Args),
    /// Compile a model ahead of time to one .frit file.
    Compile(compile::Args),
    /// Say what was fused, what was not, and why.
    Explain(explain::Args),
    /// Show weights, cache, programs and kernels.
    Inspect(inspect::Args),
    /// Execute every kernel's text on the CPU with all checks, and compare with the CPU backend.
    #[cfg(feature = "verify")]
    Verify(verify::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Generate(a) => generate::main(&a),
        Verb::Run(a) => run::main(&a),
        Verb::Compile(a) => compile::main(&a),
        Verb::Explain(a) => explain::main(&a),
        Verb::Inspect(a) => inspect::main(&a),
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
