//! `frit explain MODEL.onnx --objective …`: which stages of a model's chains of convolutions would run together.

use crate::model::{bytes, parse_bytes};
use anyhow::{Result, bail};
use frit_compiler::chain::{ELEMENT_BYTES, Objective, Overlap, Plan, Stage, search};
use frit_compiler::transform::onnx::OnnxModel;
use std::path::Path;

/// What is asked for.
#[derive(clap::Args, Clone)]
pub struct Wanted {
    /// Plan the chains of convolutions of an .onnx file so that least is moved (traffic) or least time passes (latency).
    #[arg(long, value_name = "traffic|latency")]
    objective: Option<String>,
    /// Fast memory of a group of stages, as in 48KiB.
    #[arg(long, value_name = "SIZE", default_value = "48KiB")]
    mem_cap: String,
    /// For latency: multiplications that the machine makes while it moves a byte.
    #[arg(long, value_name = "N")]
    work_per_byte: Option<f64>,
    /// Keep lines that neighbouring tiles share in fast memory, instead of computing them again only.
    #[arg(long)]
    reuse: bool,
}

impl Wanted {
    /// Prints the plans, if they are asked for.
    pub fn run(&self, model: &Path, json: bool) -> Result<bool> {
        let objective = match (self.objective.as_deref(), self.work_per_byte) {
            (None, _) => return Ok(false),
            (Some("traffic"), _) => Objective::Traffic,
            (Some("latency"), Some(work_per_byte)) if work_per_byte > 0.0 => Objective::Latency { work_per_byte },
            (Some("latency"), _) => bail!("latency depends on the machine\nhint: --work-per-byte 10"),
            (Some(other), _) => bail!("--objective is traffic or latency, not `{other}`"),
        };
        if model.extension().is_none_or(|e| !e.eq_ignore_ascii_case("onnx")) {
            bail!("{}: chains of convolutions are read from .onnx files", model.display());
        }
        let cap = parse_bytes("--mem-cap", &self.mem_cap)?;
        let overlaps: &[Overlap] =
            if self.reuse { &[Overlap::Recompute, Overlap::Reuse] } else { &[Overlap::Recompute] };
        let mut plans = Vec::new();
        for chain in OnnxModel::open(model)?.chains() {
            let plan = search(&chain, objective, cap, overlaps).map_err(anyhow::Error::msg)?;
            plans.push((chain, plan));
        }
        if json {
            let all: Vec<_> = plans
                .iter()
                .map(
                    |(chain, plan)| serde_json::json!({ "stages": chain, "plan": plan, "unfused_bytes": apart(chain) }),
                )
                .collect();
            println!("{}", serde_json::to_string_pretty(&all)?);
            return Ok(true);
        }
        for (chain, plan) in &plans {
            print(chain, plan);
        }
        if plans.is_empty() {
            println!("no convolution takes images of fixed extents");
        }
        Ok(true)
    }
}

/// Bytes of feature maps when every stage runs by itself.
fn apart(chain: &[Stage]) -> u64 {
    chain.iter().map(|s| s.elements().iter().sum::<u64>() * ELEMENT_BYTES).sum()
}

fn print(chain: &[Stage], plan: &Plan) {
    println!(
        "{} stages: {} of feature maps in {} groups, {} by themselves; {} of weights",
        chain.len(),
        bytes(plan.total.traffic_bytes()),
        plan.groups.len(),
        bytes(apart(chain)),
        bytes(plan.total.weight_bytes)
    );
    let once: u64 =
        chain.iter().map(|s| s.work().saturating_mul(s.places()[0] * s.places()[1])).fold(0, u64::saturating_add);
    for (g, c) in plan.groups.iter().zip(&plan.costs) {
        let names: Vec<&str> =
            chain.get(g.stages.clone()).unwrap_or_default().iter().map(|s| s.name.as_str()).collect();
        println!(
            "  {:9} tile {}x{}  {:>10} moved  {:>10} of fast memory  {}",
            format!("{:?}", g.overlap).to_lowercase(),
            g.tile[0],
            g.tile[1],
            bytes(c.traffic_bytes()),
            bytes(c.footprint_bytes),
            names.join(" + ")
        );
    }
    println!("  {:.2} times the multiplications of one after the other", plan.total.work as f64 / once.max(1) as f64);
}
