//! Readable unique names.

use std::collections::{BTreeMap, BTreeSet};

/// Whether `name` is an identifier every target can spell: a letter, then letters, digits and single underscores.
pub(crate) fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic())
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !name.contains("__")
}

/// Hands out names that have not been used yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    used: BTreeSet<String>,
    next: BTreeMap<String, u32>,
}

impl Names {
    /// The wish itself if it is free, else the wish with a number.
    pub(crate) fn unique(&mut self, wish: &str) -> String {
        let base = sanitize(wish);
        if self.used.insert(base.clone()) {
            return base;
        }
        loop {
            let n = self.next.entry(base.clone()).or_insert(0);
            *n += 1;
            let name = format!("{base}_{n}");
            if self.used.insert(name.clone()) {
                return name;
            }
        }
    }
}

fn sanitize(wish: &str) -> String {
    let mut name = String::new();
    for c in wish.chars() {
        let c = if c.is_ascii_alphanumeric() { c } else { '_' };
        if !(c == '_' && (name.is_empty() || name.ends_with('_'))) {
            name.push(c);
        }
    }
    let name = name.trim_end_matches('_');
    if name.starts_with(|c: char| c.is_ascii_alphabetic()) { name.to_owned() } else { format!("v{name}") }
}
