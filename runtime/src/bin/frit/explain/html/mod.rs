//! The fusion report as one self-contained page: the graph before and after fusion, every launch with what it holds, what
//! was refused, where the bytes go, and the text of every kernel once.

mod graph;

use super::measure::Measured;
use super::predicted::Predicted;
use frit_kernels::dim::Dim;
use frit_kernels::target::Tier;
use frit_plan::{BufferRef, PhaseReport, Plan, Program, RegionReport};
use std::collections::HashMap;
use std::fmt::Write;

/// Height and distance of the boxes, in pixels.
const BOX: usize = 46;
const STEP: usize = 60;

/// Evaluates a byte count of a program.
pub type Count<'a> = &'a dyn Fn(&str, &Dim) -> i64;

/// What a page shows of one program: numbers at its sizes, times where it was measured, kernels by their places.
struct Shown<'a> {
    program: &'a str,
    count: Count<'a>,
    measured: Option<&'a Measured>,
    kernels: &'a HashMap<&'a str, usize>,
}

impl Shown<'_> {
    fn count(&self, d: &Dim) -> i64 {
        (self.count)(self.program, d)
    }
    fn measured(&self, region: u32) -> Option<f64> {
        self.measured.and_then(|m| m.of(self.program, region as usize))
    }
    /// Attributes that lead to the text of a kernel.
    fn link(&self, kernel: &str) -> String {
        self.kernels.get(kernel).map_or_else(String::new, |k| format!("href=\"#k{k}\" data-k=\"k{k}\""))
    }
    fn about(&self, r: &RegionReport) -> String {
        let rewrites: Vec<String> = r.rewrites.iter().map(|w| format!("{} ({})", w.rule, w.class)).collect();
        let rewrites =
            if rewrites.is_empty() { String::new() } else { format!(", rewritten by {}", rewrites.join(", ")) };
        let measured = self.measured(r.id).map_or_else(String::new, |us| format!("; measured {us:.1} us"));
        format!(
            "K{} {}\n{}\nsaves {} and {} launches; weights {}, activations {}; {} bindings; class {}{rewrites}\npredicted {}{measured}",
            r.id,
            r.kernel,
            r.origins.join("\n"),
            size(self.count(&r.saved_bytes)),
            r.saved_launches,
            size(self.count(&r.weight_bytes)),
            size(self.count(&r.activation_bytes)),
            r.bindings,
            r.class,
            Predicted::of(r, &|d| self.count(d))
        )
    }
}

pub fn page(plan: &Plan, count: Count<'_>, measured: Option<&Measured>) -> String {
    let kernels: HashMap<&str, usize> = plan.kernels.iter().enumerate().map(|(i, k)| (k.name.as_str(), i)).collect();
    let mut body = String::new();
    for (i, p) in plan.report.phases.iter().enumerate() {
        let open = if i == 0 { " open" } else { "" };
        let _ = writeln!(body, "<details{open}><summary>{}</summary>", summary(p));
        let shown = Shown { program: &p.program, count, measured, kernels: &kernels };
        if let Some(program) = plan.program(&p.program) {
            phase(&mut body, &shown, program, p);
        }
        body.push_str("</details>\n");
    }
    body.push_str("<h2>Kernels</h2>\n");
    for (i, k) in plan.kernels.iter().enumerate() {
        let text = k.variant(Tier::Gpu).or(k.variants.first()).map_or("", |v| v.text.as_str());
        let name = escape(&k.name);
        let _ = writeln!(
            body,
            "<details class=\"kernel\" id=\"k{i}\"><summary>{name}</summary><pre>{}</pre></details>",
            escape(text)
        );
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{0}: fusion report</title>\n<style>{STYLE}</style>\n<h1>{0}</h1>\n<p class=\"note\">{1} kernels. On the left the operations as fusion received them, each below what it reads; on the right the launches that compute them, in the same colours. Layers that are alike are drawn once. Dashed red edges were refused. Point at anything for its bytes, the value that flows or the reason, and for the code of its kernel; a click leads to that.</p>\n{body}<pre id=\"code\" hidden></pre>\n<script>{SCRIPT}</script>\n</html>\n",
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

fn phase(out: &mut String, shown: &Shown<'_>, program: &Program, p: &PhaseReport) {
    let l = &p.ledger;
    bars(
        out,
        &[
            ("weights", shown.count(&l.weights), "w"),
            ("activations, unfused", shown.count(&l.activations_unfused), "u"),
            ("activations, fused", shown.count(&l.activations_fused), "f"),
        ],
    );
    let _ = write!(out, "<p>predicted {}", Predicted::sum(p, &|d| shown.count(d)));
    if let Some(us) = shown.measured.and_then(|m| m.sum(&p.program)) {
        let _ =
            write!(out, "; measured {us:.1} us on {}", escape(&shown.measured.map_or_else(String::new, Measured::on)));
    }
    out.push_str("</p>\n");
    graph::draw(out, shown, p);
    out.push_str("<details><summary>every launch</summary>\n");
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
        region(out, shown, i, r);
    }
    out.push_str("</svg>\n</details>\n");
    refused(out, p);
}

fn region(out: &mut String, shown: &Shown<'_>, i: usize, r: &RegionReport) {
    let y = i * STEP + 10;
    let _ = write!(
        out,
        "<a {}><g class=\"{}\"><title>{}</title><rect x=\"150\" y=\"{y}\" width=\"840\" height=\"{BOX}\" rx=\"6\"/><text x=\"160\" y=\"{}\">K{} {}</text><text class=\"saved\" x=\"980\" y=\"{}\">{}</text>",
        shown.link(&r.kernel),
        escape(&r.kind),
        escape(&shown.about(r)),
        y + 17,
        r.id,
        escape(&r.kind),
        y + 17,
        escape(&format!("saves {}", size(shown.count(&r.saved_bytes))))
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
    out.push_str("</g></a>\n");
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
    if !p.crossovers.is_empty() {
        out.push_str("<h3>Decided by the number of rows</h3><pre>");
        p.crossovers.iter().for_each(|c| _ = writeln!(out, "{}", escape(&super::edge::crossover(c))));
        out.push_str("</pre>\n");
    }
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
pub fn size(n: i64) -> String {
    match u64::try_from(n) {
        Ok(n) => crate::model::bytes(n),
        Err(_) => format!("−{}", crate::model::bytes(n.unsigned_abs())),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Shows the text of a kernel beside what the pointer is on, and opens it where a link leads to it.
const SCRIPT: &str = "
const code=document.getElementById('code');
for(const e of document.querySelectorAll('[data-k]')){
const k=document.getElementById(e.dataset.k);
e.addEventListener('mouseenter',()=>{code.textContent=k.querySelector('pre').textContent.slice(0,5000);code.hidden=false});
e.addEventListener('mouseleave',()=>{code.hidden=true});
e.addEventListener('click',()=>{k.open=true})}
";

const STYLE: &str = "
body{font:14px system-ui,sans-serif;margin:24px;color:#222;background:#fff}
summary{cursor:pointer;font-size:16px;padding:6px 0}.note{color:#666;max-width:60em}
svg text{font-size:12px}svg .op{text-anchor:middle;font-size:11px}svg .saved{text-anchor:end;fill:#555}
.flow{fill:none;stroke:#b5b5b5;stroke-width:1.5}.flow:hover{stroke:#000;stroke-width:3}
g>rect{stroke:#888;stroke-width:.5}g:hover>rect:first-of-type{stroke:#000;stroke-width:2}
.matmul>rect{fill:#d7e8fb}.attention>rect{fill:#fbe3d0}.row>rect{fill:#e3f3d6}.map>rect{fill:#eee}
.edge{fill:none;stroke:#888;stroke-width:1.2}.edge:hover{stroke:#000;stroke-width:3}.edge.no{stroke:#c22;stroke-dasharray:5 3}
.before>rect,.after>rect{stroke:#888;stroke-width:.5}svg .time{font-size:11px;fill:#555}
.kernel pre{overflow:auto;max-height:32em;background:#f6f6f6;padding:8px}
#code{position:fixed;right:8px;bottom:8px;width:46em;max-height:48vh;overflow:hidden;background:#fffef4;border:1px solid #999;padding:8px;margin:0;font-size:11px;pointer-events:none}
.chip{fill:#fff!important;stroke:#bbb}
table{border-collapse:collapse;margin:8px 0}.refused td,.refused th{border:1px solid #ddd;padding:3px 8px;text-align:left;vertical-align:top;font-size:12px}
.bars td{padding:2px 8px}.bars div{height:12px}.w{background:#888}.u{background:#e0a080}.f{background:#70a0d8}
";
