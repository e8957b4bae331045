//! The fusion report as one self-contained page: every launch with what it holds, what flows between them, what was
//! refused, and where the bytes go.

use frit_kernels::target::Tier;
use frit_plan::{BufferRef, PhaseReport, Plan, Program, RegionReport};
use std::fmt::Write;

/// Height and distance of the boxes, in pixels.
const BOX: usize = 46;
const STEP: usize = 60;

/// Evaluates a byte count of a phase.
pub type Count<'a> = &'a dyn Fn(&str, &frit_kernels::dim::Dim) -> i64;

pub fn page(plan: &Plan, count: Count<'_>) -> String {
    let mut body = String::new();
    for (i, p) in plan.report.phases.iter().enumerate() {
        let open = if i == 0 { " open" } else { "" };
        let _ = writeln!(body, "<details{open}><summary>{}</summary>", summary(p));
        if let Some(program) = plan.program(&p.program) {
            phase(&mut body, plan, program, p, count);
        }
        body.push_str("</details>\n");
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{0}: fusion report</title>\n<style>{STYLE}</style>\n<h1>{0}</h1>\n<p class=\"note\">{1} kernels. A box is one launch; the chips in it are the operations that would each be a launch of their own. Point at a box for its bytes and its code, at an arc for the value that flows.</p>\n{body}</html>\n",
        escape(&plan.model.name),
        plan.kernels.len()
    )
}

fn summary(p: &PhaseReport) -> String {
    format!(
        "<b>{}</b> {} launches, {} if nothing were fused; attention blocks fused: {} of {}",
        escape(&p.program),
        p.dispatches,
        p.unfused_dispatches,
        p.attention.fused,
        p.attention.blocks
    )
}

fn phase(out: &mut String, plan: &Plan, program: &Program, p: &PhaseReport, count: Count<'_>) {
    let n = |d: &frit_kernels::dim::Dim| count(&p.program, d);
    let l = &p.ledger;
    bars(
        out,
        &[
            ("weights", n(&l.weights), "w"),
            ("activations, unfused", n(&l.activations_unfused), "u"),
            ("activations, fused", n(&l.activations_fused), "f"),
        ],
    );
    let height = p.regions.len() * STEP + 20;
    let _ = writeln!(out, "<svg viewBox=\"0 0 1000 {height}\" width=\"1000\" height=\"{height}\">");
    for (from, to, name) in flows(program) {
        if to == from + 1 {
            continue;
        }
        let (a, b) = (from * STEP + BOX / 2 + 10, to * STEP + BOX / 2 + 10);
        let bend = 120usize.saturating_sub((to - from) * 12).max(4);
        let _ = writeln!(
            out,
            "<path class=\"flow\" d=\"M150 {a} C {bend} {a}, {bend} {b}, 150 {b}\"><title>{}</title></path>",
            escape(&name)
        );
    }
    for (i, r) in p.regions.iter().enumerate() {
        region(out, plan, i, r, &n);
    }
    out.push_str("</svg>\n");
    refused(out, p);
}

fn region(out: &mut String, plan: &Plan, i: usize, r: &RegionReport, n: &dyn Fn(&frit_kernels::dim::Dim) -> i64) {
    let y = i * STEP + 10;
    let kernel = plan.kernels.iter().find(|k| k.name == r.kernel);
    let text = kernel.and_then(|k| k.variant(Tier::Gpu).or(k.variants.first())).map_or("", |v| v.text.as_str());
    let title = format!(
        "K{} {}\n{}\nsaves {} and {} launches; weights {}, activations {}; {} bindings; class {}\n\n{text}",
        r.id,
        r.kernel,
        r.origins.join("\n"),
        size(n(&r.saved_bytes)),
        r.saved_launches,
        size(n(&r.weight_bytes)),
        size(n(&r.activation_bytes)),
        r.bindings,
        r.class
    );
    let _ = write!(
        out,
        "<g class=\"{}\"><title>{}</title><rect x=\"150\" y=\"{y}\" width=\"840\" height=\"{BOX}\" rx=\"6\"/><text x=\"160\" y=\"{}\">K{} {}</text><text class=\"saved\" x=\"980\" y=\"{}\">{}</text>",
        escape(&r.kind),
        escape(&title),
        y + 17,
        r.id,
        escape(&r.kind),
        y + 17,
        escape(&format!("saves {}", size(n(&r.saved_bytes))))
    );
    let mut x = 160;
    for op in &r.ops {
        let width = 8 * op.len() + 12;
        if x + width > 985 {
            break;
        }
        let _ = write!(
            out,
            "<rect class=\"chip\" x=\"{x}\" y=\"{}\" width=\"{width}\" height=\"18\" rx=\"9\"/><text class=\"op\" x=\"{}\" y=\"{}\">{}</text>",
            y + 23,
            x + width / 2,
            y + 36,
            escape(op)
        );
        x += width + 4;
    }
    out.push_str("</g>\n");
}

/// Values that one launch writes and another reads: writer, reader, name. Inputs come from no launch.
fn flows(program: &Program) -> Vec<(usize, usize, String)> {
    let mut out = Vec::new();
    for (to, step) in program.steps.iter().enumerate() {
        for arg in &step.args {
            let BufferRef::Value(v) = arg else { continue };
            if program.inputs.iter().any(|i| i.buffer == *arg) {
                continue;
            }
            let Some(value) = program.values.get(*v as usize) else { continue };
            let from = value.live.0 as usize;
            if from < to
                && !out.iter().any(|(f, t, n): &(usize, usize, String)| *f == from && *t == to && *n == value.name)
            {
                out.push((from, to, value.name.clone()));
            }
        }
    }
    out
}

fn bars(out: &mut String, rows: &[(&str, i64, &str)]) {
    let most = rows.iter().map(|r| r.1).max().unwrap_or(1).max(1) as f64;
    out.push_str("<table class=\"bars\">");
    for (name, v, class) in rows {
        let width = (*v as f64 / most * 400.0).max(1.0);
        let _ =
            write!(out, "<tr><td>{name}<td>{}<td><div class=\"{class}\" style=\"width:{width:.0}px\"></div>", size(*v));
    }
    out.push_str("</table>\n");
}

fn refused(out: &mut String, p: &PhaseReport) {
    if p.refused.is_empty() {
        return;
    }
    out.push_str("<table class=\"refused\"><tr><th>not fused<th>from<th>to<th>why<th>what would allow it");
    for e in &p.refused {
        let cells = [&e.code, &e.from, &e.to, &e.detail, &e.remedy].map(|c| escape(c));
        let _ = write!(
            out,
            "<tr><td><code>{}</code><td>{}<td>{}<td>{}<td>{}",
            cells[0], cells[1], cells[2], cells[3], cells[4]
        );
    }
    out.push_str("</table>\n");
}

/// A number of bytes, which may be negative.
pub(super) fn size(n: i64) -> String {
    match u64::try_from(n) {
        Ok(n) => crate::model::bytes(n),
        Err(_) => format!("−{}", crate::model::bytes(n.unsigned_abs())),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "
body{font:14px system-ui,sans-serif;margin:24px;color:#222;background:#fff}
summary{cursor:pointer;font-size:16px;padding:6px 0}.note{color:#666;max-width:60em}
svg text{font-size:12px}svg .op{text-anchor:middle;font-size:11px}svg .saved{text-anchor:end;fill:#555}
.flow{fill:none;stroke:#b5b5b5;stroke-width:1.5}.flow:hover{stroke:#000;stroke-width:3}
g>rect{stroke:#888;stroke-width:.5}g:hover>rect:first-of-type{stroke:#000;stroke-width:2}
.matmul>rect{fill:#d7e8fb}.attention>rect{fill:#fbe3d0}.row>rect{fill:#e3f3d6}.map>rect{fill:#eee}
.chip{fill:#fff!important;stroke:#bbb}
table{border-collapse:collapse;margin:8px 0}.refused td,.refused th{border:1px solid #ddd;padding:3px 8px;text-align:left;vertical-align:top;font-size:12px}
.bars td{padding:2px 8px}.bars div{height:12px}.w{background:#888}.u{background:#e0a080}.f{background:#70a0d8}
";
