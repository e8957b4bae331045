//! The table of rows and topics says what is there: each row has a test of its name, and every test that it names exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A line of the table.
struct Row {
    /// `7`, or `LT7`.
    number: String,
    /// What the column of tests names.
    tests: Vec<String>,
    state: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn rows() -> Vec<Row> {
    let text = std::fs::read_to_string(root().join("compiler/src/transform/README.md")).unwrap();
    let is_number = |s: &str| s.strip_prefix("LT").unwrap_or(s).parse::<u32>().is_ok();
    // A bar inside of a command is written `\|`.
    let cells = |line: &str| line.replace("\\|", "/").split('|').map(|c| c.trim().to_owned()).collect::<Vec<_>>();
    let lines = text.lines().map(cells).filter(|c| c.len() > 1 && is_number(&c[1]));
    lines
        .map(|c| {
            assert_eq!(c.len(), 7, "row {} has another number of columns", c[1]);
            let tests = c[4].split('`').skip(1).step_by(2).map(str::to_owned).collect();
            Row { number: c[1].clone(), tests, state: c[5].clone() }
        })
        .collect()
}

/// Names of the tests of this folder.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let files = std::fs::read_dir(root().join("tests/layer_fusion")).unwrap().map(|f| f.unwrap().path());
    for file in files.filter(|f| f.extension().is_some_and(|e| e == "rs")) {
        let text = std::fs::read_to_string(file).unwrap();
        let after = text.split("#[test]").skip(1).filter_map(|t| t.split_once("fn "));
        names.extend(after.filter_map(|(_, t)| t.split_once('(')).map(|(name, _)| name.to_owned()));
    }
    names
}

#[test]
fn every_row_has_a_test_of_its_name() {
    let (rows, known) = (rows(), tests());
    let numbers: Vec<String> = (1..=53).map(|n| n.to_string()).chain((1..=12).map(|n| format!("LT{n}"))).collect();
    assert_eq!(rows.iter().map(|r| r.number.clone()).collect::<Vec<_>>(), numbers);
    let mut served = 0;
    for row in &rows {
        let states = ["works", "runs", "transform", "formulas", "simulated", "not here"];
        assert!(states.iter().any(|s| row.state.starts_with(s)), "row {}: {}", row.number, row.state);
        for name in &row.tests {
            let there = match (name.strip_suffix('*'), name.strip_suffix(".rs")) {
                (Some(start), _) => known.iter().any(|t| t.starts_with(start)),
                (_, Some(_)) => root().join(name).is_file(),
                _ => known.contains(name),
            };
            assert!(there, "row {} names `{name}`, which does not exist", row.number);
        }
        let own = match row.number.strip_prefix("LT") {
            Some(n) => format!("lt_{:02}_", n.parse::<u32>().unwrap()),
            None => format!("row_{:02}_", row.number.parse::<u32>().unwrap()),
        };
        let tested = known.iter().any(|t| t.starts_with(&own));
        if row.state.starts_with("not here") {
            assert!(!tested, "row {} is not here and has tests", row.number);
            continue;
        }
        assert!(tested, "row {} has no test {own}…", row.number);
        let named = row.tests.iter().any(|t| t.starts_with(&own) || t.starts_with(own.trim_end_matches('_')));
        assert!(named, "row {} does not name its test", row.number);
        served += 1;
    }
    assert!(served >= 55, "{served} rows of {}", rows.len());
}
