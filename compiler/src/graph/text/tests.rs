use super::*;

const SAMPLE: &str = r#"graph {
  input "input_ids" %2
  input "mask \"x\"" %9 fill ones
  input "unused" %25
  %0 = const true : bool[]
  %1 = weight @w0 : f32[49152, 8]  // model.embed_tokens
  %2 = input "input_ids" : i32[B, S]
  %3 = gather %1, %2 : f32[B, S, 8]
  %4 = rms_norm{eps=1e-6} %3 : f32[B, S, 8]  // layers.0.norm
  %5 = reshape %4 : f32[B, S, 2, 4]
  %6 = transpose{perm=[0, 2, 1, 3]} %5 : f32[B, 2, S, 4]
  %7 = kv_append{slot=@kv0, part=k} %6 : f32[B, 2, P + S, 4]
  %8 = kv_read{slot=@kv0, part=k} %7 : f32[B, 2, P + S, 4]
  %9 = input "mask \"x\"" : bool[B, 1, 1, P + S]
  %10 = attention{scale=0.5, causal=P, window=128, softcap=50.0, mask} %6, %8, %8, %9 : f32[B, 2, S, 4]
  %11 = const -1.5 : f32[]
  %12 = mul %10, %11 : f32[B, 2, S, 4]
  %13 = slice{axis=2, start=S - 1, len=1} %12 : f32[B, 2, 1, 4]
  %14 = broadcast{shape=[B, 2, mod(3, S), 4]} %13 : f32[B, 2, 3, 4]
  %15 = concat{axis=2} %14, %13 : f32[B, 2, 4, 4]
  %16 = reduce_sum{axes=[2, 3], keep} %15 : f32[B, 2, 1, 1]
  %17 = const 0x7f800000 : f32[]
  %18 = select %0, %16, %17 : f32[B, 2, 1, 1]
  %19 = loop{trips=div(S, 2) + 3} %18 : f32[B, 2, 1, 1]
    graph {
      input "x" %0
      %0 = input "x" : f32[B, 2, 1, 1]
      %1 = gelu_erf %0 : f32[B, 2, 1, 1]
      output "y" %1
    }
  %20 = cast_i32 %19 : i32[B, 2, 1, 1]
  %21 = iota{axis=0, offset=P} : i32[B, 2, 1, 1]
  %22 = max %20, %21 : i32[B, 2, 1, 1]
  %23 = state @s1 : i32[B]
  %24 = matmul.bt %4, %1 : f32[B, S, 49152]  // lm_head
  %25 = input "unused" : f32[]
  output "logits" %22 state @s2
  output "s" %23
  output "l" %24
}
"#;

#[test]
fn text_comes_back_as_it_was() {
    let g = parse(SAMPLE).unwrap();
    assert_eq!(print(&g), SAMPLE);
    assert_eq!(print(&parse(&print(&g)).unwrap()), SAMPLE);
}

#[test]
fn faults_name_line_and_column() {
    let at = |text: &str| {
        let e = parse(text).unwrap_err();
        (e.line, e.column, e.fault)
    };
    let cases = [
        ("graph {", (2, 1, "`}` expected")),
        ("graf {", (1, 1, "`graph` expected")),
        ("graph {\n  %0 = const x : f32[]\n}", (2, 14, "a finite float expected")),
        ("graph {\n  %0 = exp %7 : f32[]\n}", (2, 12, "%7 is not defined above")),
        ("graph {\n  %0 = blur : f32[]\n}", (2, 8, "there is no operation `blur`")),
        ("graph {\n  %0 = const 1 : f32[B, 2*]\n}", (2, 27, "a number, a name or `(` expected")),
        (
            "graph {\n  %0 = iota{axis=0, step=2} : i32[B]\n}",
            (2, 21, "`iota` has no attribute `step`, or not of this form"),
        ),
        ("graph {\n  %0 = iota : i32[B]\n}", (2, 8, "the attribute `axis` expected")),
        ("graph {\n  input \"x\" %4\n}", (2, 13, "%4 is not defined in this graph")),
        ("graph {\n  %0 = const 1 : f32[]\n  %0 = const 1 : f32[]\n}", (3, 3, "%0 is defined twice")),
        ("graph {\n}\nmore", (3, 1, "nothing expected behind the graph")),
    ];
    for (text, (line, column, fault)) in cases {
        assert_eq!(at(text), (line, column, fault.to_owned()), "{text}");
    }
}

#[test]
fn cut_and_disturbed_texts_do_not_panic() {
    for i in (0..SAMPLE.len()).filter(|i| SAMPLE.is_char_boundary(*i)) {
        let _ = parse(&SAMPLE[..i]);
        let mut t = SAMPLE.to_owned();
        t.replace_range(i..i + 1, "]");
        let _ = parse(&t);
    }
}
