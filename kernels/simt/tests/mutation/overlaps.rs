//! Bugs planted in kernels that may start while the launch in front of them runs.

use super::Operator;
use frit_kernels::ir::{Barrier, Module, Stmt};

/// Kinds in kernel IR.
pub const OPERATORS: &[Operator] = &[Operator { name: "statement moved in front of the wait", plant: delay_wait }];

/// Whether a text takes a step that only the wait permits: a load behind it, or a store.
fn touches(line: &str) -> bool {
    line.contains("ld.global") || line.contains("st.global") || line.contains("cp.async.c")
}

/// The wait comes as many statements later as the site says, and one.
fn delay_wait(m: &mut Module, site: usize) -> bool {
    let Some(at) = m.body.iter().position(|s| matches!(s, Stmt::Barrier(Barrier::Launch))) else { return false };
    let to = at + site + 1;
    if to >= m.body.len() {
        return false;
    }
    let wait = m.body.remove(at);
    m.body.insert(to, wait);
    true
}

const WAIT: &str = "griddepcontrol.wait;";

/// The text without its wait.
pub fn without_wait(text: &str) -> Option<String> {
    text.contains(WAIT).then(|| text.replacen(WAIT, "", 1))
}

/// The text with the `site`-th access of global memory behind the wait moved, with all in front of it, before the wait.
pub fn hastened(text: &str, site: usize) -> Option<String> {
    let mut lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|l| l.contains(WAIT))?;
    let to = (at..lines.len()).filter(|i| touches(lines[*i])).nth(site)?;
    let wait = lines.remove(at);
    lines.insert(to, wait);
    Some(lines.join("\n"))
}
