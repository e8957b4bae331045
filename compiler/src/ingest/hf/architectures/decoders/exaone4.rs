//! Exaone 4: norms behind each part and of each query and key head; heads are rotated only in layers with a window, if
//! any layer has one.

use super::olmo::NORMED_BEHIND;
use super::relatives::{DEFAULTS, Defaults, llama};
use super::sizes::SizeDefaults;
use crate::ingest::hf::common_fields::{layer_windows, window};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::recipe::{QkPlace, Recipe};

pub(super) fn read(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let sizes = SizeDefaults { kv_heads: Some(32), ..DEFAULTS.sizes };
    let recipe = llama(f, Defaults { sizes, eps: 1e-5, ..DEFAULTS });
    let window = window(f, "sliding_window", Some(4096));
    let pattern = f.size("sliding_window_pattern", Some(4)) as usize;
    let windows =
        layer_windows(f, recipe.layers.len(), window, |i| window.is_some() && !(i + 1).is_multiple_of(pattern));
    let mut recipe =
        Recipe { names: NORMED_BEHIND, qk_norm: Some((QkPlace::Heads, recipe.norm)), ..recipe }.windows(windows);
    for layer in &mut recipe.layers {
        layer.rope = layer.rope.filter(|_| window.is_none() || layer.window.is_some());
    }
    Box::new(recipe)
}
