//! The one edit of depth: a new order of layers, in which a layer may be left out or come several times.
//!
//! Layer `n` of the result has the tensors of layer `order[n]`; repetitions are aliases. Lists by layer in the
//! configuration and in the extension follow. Cache slots belong to executions: a repeated layer has its own, and a
//! layer that read another's reads the nearest execution of it.

use super::checkpoint::Checkpoint;
use super::error::{Result, refuse_all};
use super::extension::{Extension, Gate, KvSource};
use super::family::{Side, Stack};
use serde_json::Value;
use std::collections::BTreeMap;

/// Fields that hold a list by layer.
const BY_LAYER: [&str; 4] = ["layer_types", "no_rope_layers", "attention_layers", "sliding_window_pattern_list"];
/// Switches under which a layer's number enters its computation.
const NUMBERED: [(&str, &str); 2] = [
    ("scale_attn_by_inverse_layer_idx", "scales attention by the layer's number"),
    ("use_sliding_window", "gives windows to layers by their number; list them in `layer_types` instead"),
];

impl Checkpoint {
    /// Puts layers in a new order. A layer that others take keys, values or probabilities from may only go if
    /// `reassign` hands its part to the first of them.
    ///
    /// # Errors
    /// Everything that stands against it, at once; the checkpoint is then as before.
    pub fn rearrange(&mut self, step: &str, side: Side, order: &[usize], reassign: bool) -> Result<()> {
        let (stack, count) = self.stack(side)?;
        if order.iter().copied().eq(0..count) {
            return Ok(());
        }
        let mut problems: Vec<String> = Vec::new();
        if order.is_empty() {
            problems.push("no layer would be left".into());
        }
        problems.extend(
            order.iter().filter(|i| **i >= count).map(|i| format!("layer {i} does not exist; there are {count}")),
        );
        for (field, what) in NUMBERED {
            let listed = field == "use_sliding_window" && self.config.contains_key("layer_types");
            if !listed && self.config.get(field) == Some(&Value::Bool(true)) {
                problems.push(format!("config.json: `{field}` {what}"));
            }
        }
        refuse_all(step, problems)?;

        let mut edited = self.clone();
        let mut extension = edited.extension()?;
        refuse_all(step, if side == Side::Encoder { Vec::new() } else { extension.faults(count) })?;
        if !extension.is_empty() && side != Side::Encoder {
            edited.hand_over(step, stack, &mut extension, order, reassign)?;
            extension = reordered(step, &extension, order, count)?;
            edited.set_extension(&extension);
        }
        if !extension.drop_encoder_ffn.is_empty() && side == Side::Encoder {
            extension.drop_encoder_ffn = members(&extension.drop_encoder_ffn, order);
            edited.set_extension(&extension);
        }
        edited.move_tensors(stack, count, order);
        edited.set(stack.count, order.len() as u64);
        for field in BY_LAYER {
            if let Some(Value::Array(list)) = edited.config.get_mut(field) {
                if list.len() == count {
                    *list = order.iter().filter_map(|i| list.get(*i).cloned()).collect();
                }
            }
        }
        *self = edited;
        Ok(())
    }

    fn move_tensors(&mut self, stack: &Stack, count: usize, order: &[usize]) {
        let fixed = |part: &str| self.family.at_position.iter().any(|p| part.starts_with(p));
        let mut parts = Vec::new();
        for i in 0..count {
            let at = self.layer(stack, i);
            let of_layer = self.layer_parts(stack, i).into_iter();
            parts.push(of_layer.filter_map(|p| self.buffer(&format!("{at}{p}")).map(|id| (p, id))).collect::<Vec<_>>());
        }
        let firsts: Vec<String> = (0..count).map(|i| self.layer(stack, i)).collect();
        let start =
            self.names.keys().position(|n| firsts.iter().any(|at| n.starts_with(at))).unwrap_or(self.names.len());
        let stays: Vec<Vec<(String, _)>> =
            parts.iter().map(|p| p.iter().filter(|(n, _)| fixed(n)).cloned().collect()).collect();
        self.names.retain(|n, _| !firsts.iter().any(|at| n.starts_with(at)));
        let tail = self.names.split_off(start.min(self.names.len()));
        for (n, i) in order.iter().enumerate() {
            let at = format!("{}{}", self.prefix, stack.layer.replacen("{}", &n.to_string(), 1));
            let fixed = |part: &str| self.family.at_position.iter().any(|p| part.starts_with(p));
            for (part, id) in parts.get(*i).into_iter().flatten().filter(|(p, _)| !fixed(p)) {
                self.names.insert(format!("{at}{part}"), *id);
            }
            for (part, id) in stays.get(n).into_iter().flatten() {
                self.names.insert(format!("{at}{part}"), *id);
            }
        }
        self.names.extend(tail);
    }

    /// Gives what a layer that goes has for others to the first of those that stay.
    fn hand_over(
        &mut self,
        step: &str,
        stack: &Stack,
        extension: &mut Extension,
        order: &[usize],
        reassign: bool,
    ) -> Result<()> {
        // What layers that go make for layers that stay.
        let mut needed: BTreeMap<(usize, Vec<usize>), Vec<&str>> = BTreeMap::new();
        let stays = |i: usize| order.contains(&i);
        for (part, ends) in [("keys", ["self_attn.k_proj.", "self_attn.k_norm."]), ("values", ["self_attn.v_proj."; 2])]
        {
            let keys = part == "keys";
            let source = |e: &Extension, i: usize| e.kv_map.get(i).map_or(i, |s| if keys { s.k } else { s.v } as usize);
            let layers = extension.kv_map.len();
            for producer in (0..layers).filter(|i| !stays(*i)) {
                let users: Vec<usize> =
                    (0..layers).filter(|i| stays(*i) && source(extension, *i) == producer).collect();
                let Some(heir) = users.first().copied() else { continue };
                if !reassign {
                    needed.entry((producer, users)).or_default().push(part);
                    continue;
                }
                let (from, to) = (self.layer(stack, producer), self.layer(stack, heir));
                for name in self.layer_parts(stack, producer).iter().filter(|n| ends.iter().any(|e| n.starts_with(e))) {
                    self.alias(&format!("{to}{name}"), &format!("{from}{name}"))?;
                }
                for i in users {
                    if let Some(s) = extension.kv_map.get_mut(i) {
                        *(if keys { &mut s.k } else { &mut s.v }) = heir as u32;
                    }
                }
            }
        }
        let mut problems: Vec<String> = needed
            .into_iter()
            .map(|((producer, users), parts)| {
                let parts = parts.join(" and ");
                format!(
                    "layer {producer} makes the {parts} that layers {users:?} attend to; keep it, or give --reassign"
                )
            })
            .collect();
        for (producer, of) in extension.probs_from.iter().enumerate() {
            let users: Vec<usize> = (0..extension.probs_from.len())
                .filter(|i| *i != producer && stays(*i) && extension.probs_from[*i] as usize == producer)
                .collect();
            if *of as usize == producer && !stays(producer) && !users.is_empty() {
                problems.push(format!("layer {producer} computes the attention that layers {users:?} reuse; keep it"));
            }
        }
        refuse_all(step, problems)
    }
}

fn gate(e: &Extension, layer: usize) -> Option<&Gate> {
    e.gates.iter().find(|g| g.layer as usize == layer)
}

/// The layers of a list, as they are numbered in the new order.
fn members(list: &[u32], order: &[usize]) -> Vec<u32> {
    (0u32..).zip(order).filter(|(_, i)| list.contains(&(**i as u32))).map(|(n, _)| n).collect()
}

/// Lists by layer in the new order, and layers that refer to others with their new numbers.
fn reordered(step: &str, e: &Extension, order: &[usize], count: usize) -> Result<Extension> {
    let mut problems = Vec::new();
    let mut nearest = |n: usize, of: usize| -> u32 {
        if of == order[n] {
            return n as u32;
        }
        let before = (0..n).rev().find(|m| order[*m] == of);
        let found = before.or_else(|| (n..order.len()).find(|m| order[*m] == of));
        found.map_or_else(
            || {
                problems.push(format!("layer {} attends by layer {of}, which goes", order[n]));
                0
            },
            |m| m as u32,
        )
    };
    let kv_map = match e.kv_map.len() {
        0 => Vec::new(),
        _ => (0..order.len())
            .map(|n| {
                let s = e.kv_map[order[n]];
                KvSource { k: nearest(n, s.k as usize), v: nearest(n, s.v as usize) }
            })
            .collect(),
    };
    let probs_from = match e.probs_from.len() {
        0 => Vec::new(),
        _ => (0..order.len()).map(|n| nearest(n, e.probs_from[order[n]] as usize)).collect(),
    };
    refuse_all(step, problems)?;
    fn pick<T: Clone>(list: &[T], order: &[usize], count: usize) -> Vec<T> {
        if list.len() == count { order.iter().map(|i| list[*i].clone()).collect() } else { Vec::new() }
    }
    Ok(Extension {
        kv_map,
        probs_from,
        value_residual: pick(&e.value_residual, order, count),
        windows: pick(&e.windows, order, count),
        drop_ffn: members(&e.drop_ffn, order),
        drop_attention: members(&e.drop_attention, order),
        linear_layers: members(&e.linear_layers, order),
        ff: pick(&e.ff, order, count),
        heads: pick(&e.heads, order, count),
        gates: (0u32..).zip(order).filter_map(|(layer, i)| Some(Gate { layer, ..*gate(e, *i)? })).collect(),
        layer_attention: members(&e.layer_attention, order),
        ..e.clone()
    })
}
