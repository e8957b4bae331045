use super::{phase, plan};
use frit_compiler::CompileOptions;
use frit_plan::Plan;

/// An edge that is fused for some numbers of rows names the bound and why it is not fused on the other side of it; the
/// reports of both programs agree.
#[test]
fn decisions_that_depend_on_rows_name_their_bound() {
    let mut seen = 0;
    for model in ["lexicon", "devset/gpt2", "devset/qwen2", "devset/bert"] {
        let plan = plan(model, CompileOptions::default());
        for p in &plan.report.phases {
            for c in &p.crossovers {
                seen += 1;
                let bounds: Vec<u64> = c.decisions.iter().map(|d| d.most_rows.unwrap_or(u64::MAX)).collect();
                assert!(bounds.is_sorted() && bounds.last() == Some(&u64::MAX), "{model} {c:?}");
                assert!(c.times > 0 && c.decisions.iter().any(|d| d.fused), "{model} {c:?}");
                for d in &c.decisions {
                    let name = d.most_rows.map_or_else(|| p.program.clone(), |n| Plan::bucket_name(&p.program, n));
                    let told = phase(&plan, &name).refused.iter().find(|e| e.from == c.from && e.to == c.to);
                    assert_eq!(told.map_or("", |e| e.code.as_str()), d.code, "{model} {name} {c:?}");
                    assert!(!d.fused || told.is_none());
                }
            }
        }
    }
    assert!(seen > 0);
}

/// A norm in front of a wide product is computed inside for few rows and by itself for many.
#[test]
fn a_norm_moves_out_of_its_product_with_more_rows() {
    let plan = plan("lexicon", CompileOptions::default());
    let p = phase(&plan, "prefill");
    let norm = p.crossovers.iter().find(|c| c.from.starts_with("rms_norm") && c.to.starts_with("matmul"));
    let norm = norm.unwrap_or_else(|| panic!("{:?}", p.crossovers));
    let (few, many) = (norm.decisions.first().unwrap(), norm.decisions.last().unwrap());
    assert!(few.fused && !many.fused, "{norm:?}");
    assert!(many.code.starts_with("L8-") && many.detail.contains("rows"), "{norm:?}");
    assert_eq!((norm.times, few.most_rows, many.most_rows), (1, Some(64), None), "{norm:?}");
}
