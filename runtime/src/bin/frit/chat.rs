//! `frit chat`.

use crate::model::{self, Progress};
use anyhow::{Result, bail};
use frit::chat::{ChatTemplate, Message};
use frit::tokenizer::Tokenizer;
use frit::{BackendChoice, GenerateOptions, Sampling, Session};
use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a .gguf or a .frit file, with a chat template.
    model: PathBuf,
    /// What the user says; several make one message each, answered in turn. Without any, lines are read from standard
    /// input.
    #[arg(long)]
    message: Vec<String>,
    /// What the model is told first.
    #[arg(long)]
    system: Option<String>,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    #[command(flatten)]
    draw: crate::draw::Draw,
    /// auto, cpu, wgpu or cuda.
    #[arg(long, default_value = "auto")]
    backend: BackendChoice,
    /// Print the text that the model is given, and do not run it.
    #[arg(long)]
    print_prompt: bool,
    /// Print one JSON object with the whole conversation instead of text.
    #[arg(long)]
    json: bool,
}

pub fn main(a: &Args) -> Result<()> {
    let sampling = a.draw.sampling()?;
    let progress = Progress::new();
    let loaded = model::open(&a.model, &progress)?;
    progress.clear();
    let info = &loaded.plan.model;
    let Some(template) = ChatTemplate::of(info) else {
        bail!("{} has no chat template\nhint: frit generate MODEL --prompt TEXT continues a text", a.model.display());
    };
    let mut said: Vec<Message> = a.system.iter().map(|text| Message::new("system", text)).collect();
    if a.print_prompt {
        said.extend(a.message.iter().map(|text| Message::new("user", text)));
        print!("{}", template.render(&said, true)?);
        return Ok(());
    }
    let Some(tokenizer) = Tokenizer::of(info)? else { bail!("{} has no tokenizer", a.model.display()) };
    let mut session = Session::builder().backend(a.backend).progress(|s| progress.stage(s)).open(&loaded)?;
    progress.clear();
    let mut lines = std::io::stdin().lock().lines();
    let mut given = a.message.iter();
    let mut stats = Vec::new();
    loop {
        let next = match (given.next(), a.message.is_empty()) {
            (Some(text), _) => Some(text.clone()),
            (None, true) => {
                if std::io::stdin().is_terminal() && !a.json {
                    print!("> ");
                    std::io::stdout().flush()?;
                }
                lines.next().transpose()?
            }
            (None, false) => None,
        };
        let Some(text) = next else { break };
        said.push(Message::new("user", &text));
        let prompt = tokenizer.encode_as_written(&template.render(&said, true)?)?;
        let (answer, made) = answer(a, &mut session, &tokenizer, prompt, sampling)?;
        said.push(Message::new("assistant", &answer));
        stats.push(made);
    }
    if a.json {
        let report = serde_json::json!({ "backend": session.backend(), "messages": said, "stats": stats });
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(())
}

/// The answer to a prompt, printed as it comes, and what it cost.
fn answer(
    a: &Args,
    session: &mut Session,
    tokenizer: &Tokenizer,
    prompt: Vec<u32>,
    sampling: Option<Sampling>,
) -> Result<(String, frit::GenerateStats)> {
    let options = GenerateOptions { max_new_tokens: a.max_new_tokens, sampling, ..GenerateOptions::default() };
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    let mut failed = None;
    let made = session.generate(&[prompt], &options, &mut |token| match stream.push(token.id) {
        Ok(more) => {
            if !a.json {
                print!("{more}");
                let _ = std::io::stdout().flush();
            }
            text.push_str(&more);
            ControlFlow::Continue(())
        }
        Err(e) => {
            failed = Some(e);
            ControlFlow::Break(())
        }
    })?;
    if let Some(e) = failed {
        return Err(e.into());
    }
    let rest = stream.finish()?;
    if !a.json {
        println!("{rest}");
    }
    text.push_str(&rest);
    Ok((text, made.stats))
}
