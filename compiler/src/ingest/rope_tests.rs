#![allow(clippy::unwrap_used, clippy::excessive_precision)]
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::rope_fields::rope;
use crate::ingest::limits::Limits;
use crate::ingest::rope::{Beyond, MOST_ROTATED};
use serde_json::{Value, json};

/// The table of a model with 8 rotary pairs and these fields.
fn table(fields: Value) -> (Vec<f32>, f32, Option<Beyond>) {
    let limits = Limits::default();
    let mut f = Fields::new("config.json", fields.as_object().unwrap(), &limits);
    let table = rope(&mut f, 16, 4096).frequencies();
    assert_eq!(f.into_gaps().0, [], "{fields}");
    (table.inv_freq, table.scale, table.beyond)
}

fn check(extra: Value, inv_freq: [f32; 8], scale: f32, after: Option<u64>) {
    let got = table(extra.clone());
    for (g, w) in got.0.iter().zip(inv_freq) {
        assert!((g - w).abs() <= w * 1e-6, "{extra}: {:?} and not {inv_freq:?}", got.0);
    }
    assert_eq!(got.0.len(), 8);
    assert!((got.1 - scale).abs() <= scale * 1e-6, "{extra}: scale {} and not {scale}", got.1);
    let got_after = got.2.map(|beyond| match beyond {
        Beyond::Other { after, .. } | Beyond::Growing { after, .. } => after,
    });
    assert_eq!(got_after, after, "{extra}");
}

/// The expected numbers are those of transformers 4.57.6.
#[test]
fn tables_are_those_of_transformers() {
    check(
        json!({"rope_theta": 10000.0, "rope_scaling": null}),
        [1.0, 0.316227764, 0.100000001, 0.0316227786, 0.00999999978, 0.00316227786, 0.00100000005, 0.000316227786],
        1.0,
        None,
    );
    check(
        json!({"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        [0.25, 0.079056941, 0.0250000004, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-05],
        1.0,
        None,
    );
    check(
        json!({"rope_theta": 10000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
        [1.0, 0.316227764, 0.100000001, 0.0316227786, 0.00999999978, 0.00316227786, 0.00100000005, 0.000316227786],
        1.0,
        Some(4096),
    );
    check(
        json!({"rope_theta": 10000.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}}),
        [1.0, 0.316227764, 0.0812500045, 0.0197642371, 0.00437500002, 0.000790569466, 0.000250000012, 7.90569466e-05],
        1.1386294,
        None,
    );
    check(
        json!({"rope_theta": 500000.0, "rope_scaling": {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 256, "mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 16, "beta_slow": 2, "truncate": false}}),
        [
            1.0,
            0.129767045,
            0.000940150756,
            0.000182316624,
            3.53553369e-05,
            6.85620444e-06,
            1.32957393e-06,
            2.57834614e-07,
        ],
        1.155722,
        None,
    );
    check(
        json!({"rope_theta": 10000.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.75}}),
        [1.0, 0.316227764, 0.100000001, 0.025693506, 0.00624999963, 0.00138349656, 0.000250000012, 7.90569466e-05],
        0.75,
        None,
    );
    check(
        json!({"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}}),
        [
            1.0,
            0.193922758,
            0.0273441337,
            0.000911583134,
            0.000176776681,
            3.42810235e-05,
            6.64786967e-06,
            1.28917316e-06,
        ],
        1.0,
        None,
    );
    check(
        json!({"rope_theta": 10000.0, "rope_scaling": {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "long_factor": [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]}}),
        [1.0, 0.287479758, 0.0833333358, 0.0243252143, 0.00714285718, 0.00210818532, 0.000624999986, 0.000186016332],
        1.0801234,
        Some(4096),
    );
    check(
        json!({"rope_theta": 10000.0, "original_max_position_embeddings": 1024, "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "long_factor": [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]}}),
        [1.0, 0.287479758, 0.0833333358, 0.0243252143, 0.00714285718, 0.00210818532, 0.000624999986, 0.000186016332],
        1.0954451,
        Some(1024),
    );
}

#[test]
fn the_old_and_the_new_spelling_of_the_table_are_one() {
    let want = table(json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2}}));
    assert_eq!(table(json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})), want);
    let new = json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}});
    assert_eq!(table(new), want);
}

#[test]
fn rotations_that_no_head_has_are_refused_and_cost_nothing() {
    let (limits, none) = (Limits::default(), json!({}));
    let mut f = Fields::new("config.json", none.as_object().unwrap(), &limits);
    let table = rope(&mut f, (1 << 31) - 2, 4096).frequencies();
    assert!(table.inv_freq.len() as u64 <= MOST_ROTATED);
    let (gaps, _) = f.into_gaps();
    assert!(gaps.iter().any(|g| g.to_string().contains("2147483646")), "{gaps:?}");
}
