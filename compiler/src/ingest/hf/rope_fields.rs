//! The fields of rotary positions.

use super::fields::Fields;
use crate::ingest::rope::{MOST_ROTATED, RopeConfig, RopeScaling};
use serde_json::Value;

/// What an architecture assumes where its configuration is silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeDefaults {
    pub theta: f64,
    /// The field of the base.
    pub theta_field: &'static str,
    /// The context before it was made longer.
    pub original_context: Option<u64>,
    /// Names of scalings in old files, and those of today.
    pub renamed: &'static [(&'static str, &'static str)],
}

impl Default for RopeDefaults {
    fn default() -> Self {
        RopeDefaults { theta: 1e4, theta_field: "rope_theta", original_context: None, renamed: &[] }
    }
}

/// Rotary positions with the usual defaults.
pub(crate) fn rope(f: &mut Fields<'_>, dim: u64, context: u64) -> RopeConfig {
    rope_with(f, dim, context, RopeDefaults::default())
}

/// Rotary positions: `rope_theta` and `rope_scaling`, or both in `rope_parameters`.
pub(crate) fn rope_with(f: &mut Fields<'_>, dim: u64, context: u64, defaults: RopeDefaults) -> RopeConfig {
    let table = if f.get("rope_scaling").is_none() && f.get("rope_parameters").is_some() {
        "rope_parameters"
    } else {
        "rope_scaling"
    };
    let at = |field: &str| format!("{table}.{field}");
    let inside = at("rope_theta");
    let theta_path = if f.get(&inside).is_some() { inside.as_str() } else { defaults.theta_field };
    let theta = f.number(theta_path, Some(defaults.theta), "a number above 1", |v| v > 1.0);
    most_rotated(f, "head_dim", dim);
    RopeConfig { theta, dim, context, scaling: scaling(f, table, dim, context, defaults) }
}

/// Notes a gap where `dim` elements, which follow from `field`, are more than a head has.
pub(crate) fn most_rotated(f: &mut Fields<'_>, field: &str, dim: u64) {
    if dim > MOST_ROTATED {
        let problem = format!("makes {dim} elements rotate; a head has {MOST_ROTATED} at most");
        f.gap(field, problem, "correct it");
    }
}

fn scaling(f: &mut Fields<'_>, table: &str, dim: u64, context: u64, defaults: RopeDefaults) -> RopeScaling {
    let at = |field: &str| format!("{table}.{field}");
    match f.get(table) {
        None => return RopeScaling::Default,
        Some(Value::Object(_)) => {}
        Some(_) => {
            f.gap(table, "is no object", "correct it");
            return RopeScaling::Default;
        }
    }
    let (new, old) = (f.text(&at("rope_type")), f.text(&at("type")));
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        f.gap(table, format!("has rope_type `{new}` and type `{old}`"), "remove the wrong one");
    }
    let original = |f: &mut Fields<'_>, default| f.size(&at("original_max_position_embeddings"), default);
    let kind =
        new.or(old).map(|kind| defaults.renamed.iter().find(|(old, _)| *old == kind).map_or(kind, |(_, today)| today));
    match kind {
        Some("default") => RopeScaling::Default,
        Some("linear") => RopeScaling::Linear { factor: f.positive(&at("factor"), None) },
        Some("dynamic") => {
            if dim <= 2 {
                f.gap(table, "is `dynamic`, which a head of 2 elements does not have", "use another scaling");
            }
            RopeScaling::Dynamic { factor: f.number(&at("factor"), None, "a number of at least 1", |v| v >= 1.0) }
        }
        Some("yarn") => RopeScaling::Yarn {
            factor: f.positive(&at("factor"), None),
            attention_factor: f.positive_or_none(&at("attention_factor")),
            beta_fast: f.number(&at("beta_fast"), Some(32.0), "a number", |v| v > 0.0),
            beta_slow: f.number(&at("beta_slow"), Some(1.0), "a number", |v| v > 0.0),
            mscale: f.positive_or_none(&at("mscale")),
            mscale_all_dim: f.positive_or_none(&at("mscale_all_dim")),
            original_context: original(f, Some(context)),
            truncate: f.flag(&at("truncate"), true),
        },
        Some("llama3") => {
            let low = f.positive(&at("low_freq_factor"), None);
            let high = f.positive(&at("high_freq_factor"), None);
            if high <= low && f.get(&at("low_freq_factor")).is_some() && f.get(&at("high_freq_factor")).is_some() {
                f.gap(
                    &at("high_freq_factor"),
                    format!("is {high}, not above low_freq_factor {low}"),
                    "correct one of them",
                );
            }
            RopeScaling::Llama3 {
                factor: f.positive(&at("factor"), None),
                low,
                high,
                original_context: original(f, None),
            }
        }
        Some("longrope") => {
            let stated = f.get("original_max_position_embeddings").is_some();
            let stated = stated.then(|| f.size("original_max_position_embeddings", None));
            let original_context = stated.or(defaults.original_context);
            let factor = f.positive_or_none(&at("factor"));
            let attention_factor = f.positive_or_none(&at("attention_factor"));
            if factor.is_none() && attention_factor.is_none() && original_context.is_none() {
                f.gap(
                    &at("factor"),
                    "is missing, and so are attention_factor and original_max_position_embeddings",
                    "add one of them",
                );
            }
            let short = f.factors(&at("short_factor"), dim / 2);
            let long = f.factors(&at("long_factor"), dim / 2);
            RopeScaling::LongRope { short, long, factor, attention_factor, original_context }
        }
        Some(other) => {
            f.gap(
                table,
                format!("has the type `{other}`, which is not known"),
                "use default, linear, dynamic, yarn, llama3 or longrope",
            );
            RopeScaling::Default
        }
        None => {
            f.gap(table, "has no rope_type", "add it: default, linear, dynamic, yarn, llama3 or longrope");
            RopeScaling::Default
        }
    }
}
