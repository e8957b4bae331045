//! The graph before fusion beside the regions after it: a drawing for each block, layers that are alike drawn once.
//! Operations stand below what they read, in the colour of the region that took them.

use super::super::predicted::Predicted;
use super::{Shown, escape, size};
use frit_plan::{DrawnBlock, DrawnEdge, DrawnOp, PhaseReport};
use std::fmt::Write;

const WIDTH: usize = 132;
const HEIGHT: usize = 24;
const STEP: usize = 50;
const REGION: usize = 40;
const GAP: usize = 12;
const TOP: usize = 28;
/// Between the operations and the regions.
const AISLE: usize = 70;
const REGION_WIDTH: usize = 420;

/// Where an operation of a block stands.
#[derive(Clone, Copy)]
struct Place {
    x: usize,
    y: usize,
}

impl Place {
    fn middle(self) -> usize {
        self.x + WIDTH / 2
    }
}

pub fn draw(out: &mut String, shown: &Shown<'_>, p: &PhaseReport) {
    for (b, block) in p.drawing.blocks.iter().enumerate() {
        let ops: Vec<(usize, &DrawnOp)> =
            p.drawing.ops.iter().enumerate().filter(|(_, o)| o.block as usize == b).collect();
        let _ = writeln!(out, "<h3>{}</h3>", escape(&title(block)));
        one(out, shown, p, block, &ops);
    }
}

fn title(b: &DrawnBlock) -> String {
    match b.layers.as_slice() {
        [] => "outside of layers".into(),
        [only] => only.clone(),
        [first, .., last] => format!("{first} … {last} × {}", b.layers.len()),
    }
}

/// Rows of the operations from the top: each below all that it reads in the block.
fn depths(ops: &[(usize, &DrawnOp)], edges: &[DrawnEdge]) -> Vec<usize> {
    let first = ops.first().map_or(0, |o| o.0);
    let mut depth = vec![0; ops.len()];
    for (i, (id, _)) in ops.iter().enumerate() {
        let above = |e: &&DrawnEdge| e.flows && e.to as usize == *id && e.from < e.to && e.from as usize >= first;
        let read = edges.iter().filter(above).filter_map(|e| depth.get(e.from as usize - first)).max();
        if let Some(below) = read.map(|d| d + 1) {
            depth[i] = below;
        }
    }
    depth
}

fn one(out: &mut String, shown: &Shown<'_>, p: &PhaseReport, block: &DrawnBlock, ops: &[(usize, &DrawnOp)]) {
    let (first, depth) = (ops.first().map_or(0, |o| o.0), depths(ops, &p.drawing.edges));
    let rows = depth.iter().max().map_or(0, |d| d + 1);
    let mut taken = vec![0usize; rows];
    let places: Vec<Place> = depth
        .iter()
        .map(|d| {
            let x = taken.get(*d).copied().unwrap_or(0);
            if let Some(t) = taken.get_mut(*d) {
                *t += 1;
            }
            Place { x: 10 + x * (WIDTH + GAP), y: TOP + d * STEP }
        })
        .collect();
    let left = taken.iter().max().copied().unwrap_or(1).max(1) * (WIDTH + GAP) + 10;
    let height = (rows * STEP).max(block.regions.len() * (REGION + GAP)) + TOP + 24;
    let width = left + AISLE + REGION_WIDTH + 10;
    let _ = writeln!(out, "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">");
    let at = |id: u32| (id as usize).checked_sub(first).and_then(|i| places.get(i)).copied();
    for e in &p.drawing.edges {
        edge(out, shown, p, e, [at(e.from), at(e.to)], height);
    }
    for ((_, o), place) in ops.iter().zip(&places) {
        operation(out, shown, p, o, *place);
    }
    for (i, id) in block.regions.iter().enumerate() {
        region(out, shown, p, *id, left + AISLE, TOP + i * (REGION + GAP));
    }
    out.push_str("</svg>\n");
}

/// Neighbouring numbers get colours far apart.
fn colour(region: u32) -> String {
    format!("hsl({} 65% {}%)", region * 137 % 360, 84)
}

fn named(o: Option<&DrawnOp>) -> String {
    o.map_or_else(String::new, |o| if o.origin.is_empty() { o.op.clone() } else { format!("{} ({})", o.op, o.origin) })
}

fn edge(out: &mut String, shown: &Shown<'_>, p: &PhaseReport, e: &DrawnEdge, ends: [Option<Place>; 2], height: usize) {
    let [from, to] = [e.from, e.to].map(|i| p.drawing.ops.get(i as usize));
    let bytes = from.map_or(0, |o| shown.count(&o.bytes));
    let mut said = format!("{} → {}", named(from), named(to));
    if e.flows {
        let _ = write!(said, "\n{}", size(bytes));
    }
    let refusal = e.refused.and_then(|r| p.refused.get(r as usize));
    if let Some(r) = refusal {
        let _ = write!(said, "\nnot fused, {}: {}\nto allow it: {}", r.code, r.detail, r.remedy);
    }
    let class = if refusal.is_some() { "edge no" } else { "edge" };
    let path = match ends {
        [Some(a), Some(b)] if e.from < e.to && b.y > a.y => {
            let (x, y, u, v) = (a.middle(), a.y + HEIGHT, b.middle(), b.y);
            // Past the operations in between.
            let aside = if v - y > STEP { WIDTH / 2 + GAP / 2 } else { 0 };
            format!("M{x} {y} C {} {}, {} {}, {u} {v}", x + aside, y + STEP / 2, u + aside, v.saturating_sub(STEP / 2))
        }
        [Some(a), Some(b)] if e.from < e.to => {
            let y = a.y.max(b.y) + HEIGHT;
            format!("M{} {y} Q {} {}, {} {y}", a.middle(), (a.middle() + b.middle()) / 2, y + 22, b.middle())
        }
        [Some(a), Some(_) | None] => {
            format!("M{} {} V {}", a.middle(), a.y + HEIGHT, (a.y + HEIGHT + 16).min(height))
        }
        [None, Some(b)] => format!("M{} {} V {}", b.middle(), b.y.saturating_sub(16), b.y),
        [None, None] => return,
    };
    let _ = writeln!(out, "<path class=\"{class}\" d=\"{path}\"><title>{}</title></path>", escape(&said));
}

fn operation(out: &mut String, shown: &Shown<'_>, p: &PhaseReport, o: &DrawnOp, at: Place) {
    let region = o.regions.first().and_then(|r| p.regions.get(*r as usize));
    let took: Vec<String> = o.regions.iter().map(|r| format!("K{r}")).collect();
    let said = format!("{}\nresult {}\ncomputed in {}", named(Some(o)), size(shown.count(&o.bytes)), took.join(", "));
    let fill = o.regions.first().map_or_else(|| "#fff".into(), |r| colour(*r));
    let link = region.map_or_else(String::new, |r| shown.link(&r.kernel));
    let _ = writeln!(
        out,
        "<a {link}><g class=\"before\"><title>{}</title><rect x=\"{}\" y=\"{}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"5\" style=\"fill:{fill}\"/><text class=\"op\" x=\"{}\" y=\"{}\">{}</text></g></a>",
        escape(&said),
        at.x,
        at.y,
        at.middle(),
        at.y + 16,
        escape(&o.op)
    );
}

fn region(out: &mut String, shown: &Shown<'_>, p: &PhaseReport, id: u32, x: usize, y: usize) {
    let Some(r) = p.regions.get(id as usize) else { return };
    let predicted = Predicted::of(r, &|d| shown.count(d));
    let _ = writeln!(
        out,
        "<a {}><g class=\"after\"><title>{}</title><rect x=\"{x}\" y=\"{y}\" width=\"{REGION_WIDTH}\" height=\"{REGION}\" rx=\"6\" style=\"fill:{}\"/><text x=\"{}\" y=\"{}\">K{} {}</text><text class=\"saved\" x=\"{}\" y=\"{}\">saves {}</text><text class=\"time\" x=\"{}\" y=\"{}\">{}</text></g></a>",
        shown.link(&r.kernel),
        escape(&shown.about(r)),
        colour(id),
        x + 10,
        y + 16,
        r.id,
        escape(&r.kernel),
        x + REGION_WIDTH - 8,
        y + 16,
        escape(&size(shown.count(&r.saved_bytes))),
        x + 10,
        y + 32,
        escape(&shown.measured(id).map_or_else(
            || format!("predicted {predicted}"),
            |us| format!("predicted {predicted}; measured {us:.1} us")
        )),
    );
}
