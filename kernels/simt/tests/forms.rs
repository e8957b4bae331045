//! Every form of instruction that kernels are written with stands in a case whose result was worked out by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/support/mod.rs"]
mod support;

use frit_kernels::target::Capabilities;
use frit_kernels::templates::render;
use std::collections::{BTreeMap, BTreeSet};
use support::corpus::{self, DECODER, ODD};

/// The tests whose results are written out or follow from a definition of their own.
const CASES: [&str; 5] = [
    include_str!("ptx_values.rs"),
    include_str!("ptx_families.rs"),
    include_str!("ptx_matrix.rs"),
    include_str!("ptx_hopper.rs"),
    include_str!("fragments.rs"),
];

/// A form without what makes no difference to what is done: whether 32 bits that are moved are a float, and how wide the
/// product of a warpgroup is.
fn plain(form: &str) -> String {
    let moves = ["ld.", "st.", "mov.", "selp."].iter().any(|p| form.starts_with(p));
    let part = |p: &str| match p {
        "f32" | "u32" | "s32" if moves => "b32".to_owned(),
        p if p.starts_with("m64n") => "m64n".to_owned(),
        p => p.to_owned(),
    };
    form.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// The instructions of a text by form, each with a line that has it.
fn forms(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|l| l.ends_with(';') && !l.starts_with('.')) {
        let words: Vec<&str> = line.trim_end_matches(';').split_whitespace().collect();
        let form = words.iter().find(|w| !w.starts_with('@')).expect("an instruction");
        found.entry(plain(form)).or_insert_with(|| line.to_owned());
    }
    found
}

#[test]
fn every_emitted_form_has_a_case() {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '_');
    let cases: BTreeSet<String> = CASES.iter().flat_map(|c| c.split(|c| !is_part(c))).map(plain).collect();
    // Some cases put a form together of what they vary.
    let parts = |form: &str| -> Vec<String> {
        let product = form.strip_prefix("mma.sync.aligned.").and_then(|f| f.split_once(".row.col."));
        let load = form.strip_prefix("ldmatrix.sync.aligned.m8n8.").and_then(|f| f.strip_suffix(".shared.b16"));
        match (product, load) {
            (Some((shape, types)), _) => vec![shape.to_owned(), types.to_owned()],
            (_, Some(tiles)) => vec![tiles.to_owned()],
            _ => vec![form.to_owned()],
        }
    };
    let is_covered = |form: &str| parts(form).iter().all(|p| cases.contains(p));
    let mut missing = BTreeMap::new();
    for caps in [Capabilities::cuda(), Capabilities::cuda_overlapping(), Capabilities::cuda_warpgroups()] {
        for spec in corpus::all(&ODD).into_iter().chain(corpus::all(&DECODER)) {
            let text = render(&spec, &caps).unwrap().text;
            missing.extend(forms(&text).into_iter().filter(|(form, _)| !is_covered(form)));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
