//! `frit generate`.

use crate::model::{self, Progress, bytes};
use anyhow::{Context, Result, bail};
use frit::tokenizer::Tokenizer;
use frit::{BackendChoice, GenerateOptions, NewToken, Session, Tensor, npz, visible_tokens};
use frit_plan::Task;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, an .onnx, a .gguf or a .frit file [default: fixtures/lexicon]
    model: Option<PathBuf>,
    /// Text to continue.
    #[arg(long, conflicts_with = "inputs")]
    prompt: Option<String>,
    /// An .npz file with `input_ids` and optionally `attention_mask`, instead of a prompt.
    #[arg(long, requires = "output")]
    inputs: Option<PathBuf>,
    /// Where the new tokens are written, as `tokens`.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Most tokens to generate.
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    #[command(flatten)]
    draw: crate::draw::Draw,
    /// Go on after the model's end-of-text token.
    #[arg(long)]
    ignore_eos: bool,
    #[cfg(feature = "compiler")]
    #[command(flatten)]
    policy: crate::policy::Policy,
    #[cfg(feature = "compiler")]
    #[command(flatten)]
    devices: crate::devices::Devices,
    /// auto, cpu, wgpu or cuda.
    #[arg(long, default_value = "auto")]
    backend: BackendChoice,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub fn main(a: &Args) -> Result<()> {
    let sampling = a.draw.sampling()?;
    let path = model::path(a.model.as_deref())?;
    let progress = Progress::new();
    #[cfg(feature = "compiler")]
    let steered = match a.policy.open(&path, a.devices.options(), &progress)? {
        None => a.devices.open(&path, &progress)?,
        some => some,
    };
    #[cfg(not(feature = "compiler"))]
    let steered = None;
    let loaded = steered.map_or_else(|| model::open(&path, &progress), Ok)?;
    frit::check_generates(&loaded.plan)?;
    let tokenizer = Tokenizer::of(&loaded.plan.model)?;
    let encodes = loaded.plan.model.task == Task::EncoderDecoder;
    let mut source: Vec<(String, Tensor)> = Vec::new();
    let (prompts, from_text) = match (&a.prompt, &a.inputs) {
        (None, Some(file)) if encodes => {
            source = npz::read(file)?;
            let own = source.iter().position(|(n, _)| n == "decoder_input_ids").map(|i| source.remove(i).1);
            let own = own.map(|ids| visible_tokens(&ids, None)).transpose();
            (own.with_context(|| file.display().to_string())?.unwrap_or_default(), false)
        }
        (Some(text), _) => {
            let Some(t) = &tokenizer else {
                bail!(
                    "{} has no tokenizer\nhint: give token ids with --inputs ids.npz --output out.npz",
                    path.display()
                );
            };
            let ids = t.encode(text)?;
            if encodes {
                let row = ids.iter().map(|id| *id as i32).collect();
                source.push(("input_ids".into(), Tensor::i32(&[1, ids.len() as u64], row)?));
                (Vec::new(), true)
            } else {
                (vec![ids], true)
            }
        }
        (None, Some(file)) => {
            let arrays = npz::read(file)?;
            let find = |n: &str| arrays.iter().find(|(name, _)| name == n).map(|(_, t): &(String, Tensor)| t);
            let ids =
                find("input_ids").with_context(|| format!("{}: there is no array `input_ids`", file.display()))?;
            let visible = visible_tokens(ids, find("attention_mask"));
            (visible.with_context(|| file.display().to_string())?, false)
        }
        (None, None) => {
            bail!("there is nothing to continue\nhint: --prompt TEXT, or --inputs ids.npz --output out.npz")
        }
    };
    let mut session = Session::builder().backend(a.backend).progress(|s| progress.stage(s)).open(&loaded)?;
    #[cfg(feature = "compiler")]
    a.policy.steer(&mut session)?;
    progress.clear();
    let options = GenerateOptions {
        max_new_tokens: a.max_new_tokens,
        sampling,
        ignore_eos: a.ignore_eos,
        ..GenerateOptions::default()
    };
    let show = from_text && !a.json;
    let mut stream = tokenizer.as_ref().filter(|_| show).map(Tokenizer::stream);
    if let (true, Some(p)) = (show && !encodes, &a.prompt) {
        print!("{p}");
        std::io::stdout().flush()?;
    }
    let mut failed = None;
    let mut on_token = |t: NewToken| {
        if let Some(s) = &mut stream {
            match s.push(t.id) {
                Ok(text) => {
                    print!("{text}");
                    let _ = std::io::stdout().flush();
                }
                Err(e) => {
                    failed = Some(e);
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    };
    let made = match encodes {
        true => session.generate_from(&source, &prompts, &options, &mut on_token)?,
        false => session.generate(&prompts, &options, &mut on_token)?,
    };
    if let Some(e) = failed {
        return Err(e.into());
    }
    if let Some(s) = stream {
        println!("{}", s.finish()?);
    }
    if let Some(out) = &a.output {
        let (shape, tokens) = made.padded();
        npz::write(out, &[("tokens", npz::Array::I64(&shape, &tokens))])?;
        model::written("tokens", &shape, out);
    }
    let s = &made.stats;
    if a.json {
        let texts: Vec<Option<String>> =
            made.rows.iter().map(|r| tokenizer.as_ref().and_then(|t| t.decode(&r.tokens).ok())).collect();
        let report = serde_json::json!({
            "backend": session.backend(),
            "device": session.device(),
            "rows": made.rows,
            "texts": texts,
            "stats": s,
            "tokens_per_second": { "prefill": s.prefill_rate(), "decode": s.decode_rate() },
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else if from_text {
        println!("\nbackend  {} ({})", session.backend(), session.device());
        println!(
            "kernels  {} a token, {} if nothing were fused; {} of activations not moved",
            s.kernels_per_token,
            s.kernels_per_token_unfused,
            bytes(s.saved_bytes_per_token)
        );
        let most = s.depth.tokens * u64::from(s.depth.layers);
        if s.depth.layers_run < most || s.depth.ffn_possible > 0 {
            println!(
                "depth    {} of {most} layers, {} of {} optional ffns",
                s.depth.layers_run, s.depth.ffn_run, s.depth.ffn_possible
            );
        }
        if let Some(e) = &s.eviction {
            println!("cache    {}: {} of {} tokens at the end", bytes(e.bytes), e.columns, e.columns + e.evicted);
        }
        println!("speed    {:.1} tokens/s, prompt {:.1} tokens/s", s.decode_rate(), s.prefill_rate());
    }
    Ok(())
}
