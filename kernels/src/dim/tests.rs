use super::*;

fn d(s: &str) -> Dim {
    s.parse().unwrap()
}

#[test]
fn sums_and_products_have_one_normal_form() {
    assert_eq!(d("(B + 1)*S - S"), d("B*S"));
    assert_eq!(d("2*B*3 + B"), d("7*B"));
    assert_eq!(d("div(6*B*S, 2*S)"), d("3*B"));
    assert_eq!(d("mod(4*S + 1, S)").to_string(), "mod(1, S)");
    assert_eq!(d("div(i0 - 42, 12)"), d("div(i0 + 6, 12) - 4"));
    assert_eq!(d("64*S").ceil_div(&d("64")), d("S"));
    assert_eq!(d("64*S + 63").rem(&d("64")), d("63"));
}
#[test]
fn text_round_trips() {
    for t in ["0", "-3", "2*B*S - 1", "div(i0 + 3, 4)", "mod(i0, 7)*S + max(B, S)", "v3*64 + i1"] {
        assert_eq!(d(&d(t).to_string()), d(t), "{t}");
    }
}
#[test]
fn a_reshape_through_heads_cancels() {
    let mut b = Bounds::new();
    for (k, e) in ["B", "S", "12", "64"].iter().enumerate() {
        b.axis(k, &d(e));
    }
    let linear = d("i0*S*768 + i1*768 + i2*64 + i3");
    assert_eq!(linear.div(&d("768*S")).simplify(&b), d("i0"));
    assert_eq!(linear.rem(&d("768")).simplify(&b), d("i2*64 + i3"));
    assert_eq!(linear.rem(&d("768")).div(&d("64")).simplify(&b), d("i2"));
}
#[test]
fn split_rows_join_again() {
    let mut b = Bounds::new();
    b.axis(0, &d("B*S"));
    assert_eq!(d("div(i0, S)*S*768 + mod(i0, S)*768 + i1").simplify(&b), d("i0*768 + i1"));
}
#[test]
fn a_bound_that_names_another_size_moves_with_it() {
    let mut b = Bounds::new();
    b.set(Sym::Size("P".into()), 0, Some(d("64 - S")));
    b.set(Sym::Size("S".into()), 1, None);
    assert!(b.le(&d("P + S"), &d("64")));
    assert!(!b.le(&d("P + S"), &d("63")));
    assert!(b.le(&d("P"), &d("63")));
}

#[test]
fn the_prover_uses_symbolic_upper_bounds() {
    let mut b = Bounds::new();
    b.axis(0, &d("S"));
    assert!(b.less(&d("i0"), &d("S")));
    assert!(!b.less(&d("i0 + 1"), &d("S")));
    assert!(b.less(&d("mod(i0, 5)"), &d("5")));
    b.set(Sym::Size("S".into()), 1, Some(d("8")));
    assert!(b.le(&d("S"), &d("8")));
}
#[test]
fn parse_faults_name_the_place() {
    assert!(matches!("2*".parse::<Dim>(), Err(DimError::Parse { at: 2, .. })));
    assert!("div(1 2)".parse::<Dim>().is_err());
}
#[test]
fn evaluation_is_checked() {
    let env = |s: &Sym| (s.to_string() == "B").then_some(i64::MAX);
    assert!(matches!(d("B*B").eval(&env), Err(DimError::Overflow(_))));
    assert!(matches!(d("B*Q").eval(&env), Err(DimError::Unbound(_))));
}
