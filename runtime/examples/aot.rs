//! Loads an artifact that was compiled ahead of time and continues a prompt. Needs no compiler:
//!
//! ```text
//! frit compile fixtures/lexicon -o lexicon.frit
//! cargo run --release -p frit --no-default-features --features tokenizer --example aot -- lexicon.frit "kiln (noun):"
//! ```

#![allow(clippy::print_stdout)]

use frit::tokenizer::Tokenizer;
use frit::{GenerateOptions, Session};
use std::ops::ControlFlow;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(file), Some(prompt)) = (args.next(), args.next()) else {
        return Err("usage: aot FILE.frit PROMPT".into());
    };
    let mut session = Session::load(file)?;
    let tokenizer = Tokenizer::of(&session.plan().model)?.ok_or("the artifact has no tokenizer")?;
    let ids = tokenizer.encode(&prompt)?;
    let made = session.generate(&[ids], &GenerateOptions::default(), &mut |_| ControlFlow::Continue(()))?;
    println!("{prompt}{}", tokenizer.decode(&made.rows[0].tokens)?);
    Ok(())
}
