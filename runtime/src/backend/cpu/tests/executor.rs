use super::*;
use crate::Error;
use crate::backend::Backend;
use frit_kernels::spec::{ReduceOp, Stat};
use frit_plan::{KvPart, KvSlotDecl, RopePart, StateDecl};

/// A decoder's skeleton: `append` writes x into the cache at P, `read` sums the cache up to P + S, `scale` multiplies by
/// a rotary table at P and counts in a state.
fn cached() -> Plan {
    let sizes = [("B", 0), ("S", 0), ("P", 0), ("T", 0)];
    let mut plan = empty_plan(&sizes);
    plan.kv_slots.push(KvSlotDecl {
        name: "layer0".into(),
        k_shape: vec![d("B"), d("T"), d("4")],
        v_shape: vec![d("B"), d("T"), d("4")],
    });
    plan.states.push(StateDecl { name: "next".into(), storage: Storage::I32, shape: vec![d("B")] });
    plan.weights.push(WeightDecl {
        name: "cos".into(),
        storage: Storage::F32,
        shape: vec![d("T"), d("4")],
        placement: Placement::Side,
        source: WeightSource::Rope { inv_freq: vec![1.0, 0.5, 0.1, 0.01], scale: 2.0, part: RopePart::Cos },
    });
    let arg = |name: &str, space, storage, len: &str, written| Arg {
        name: name.into(),
        space,
        storage,
        len: d(len),
        written,
        rounded: None,
    };

    let mut c = Case::new(&["B", "S", "4"], &sizes);
    c.spec.name = "append".into();
    c.spec.args = vec![
        arg("x", Space::Arena, Storage::F32, "B*S*4", false),
        arg("cos", Space::Side, Storage::F32, "T*4", false),
        arg("k", Space::Kv(0), Storage::F32, "B*T*4", true),
        arg("v", Space::Kv(0), Storage::F32, "B*T*4", true),
    ];
    let (x, cos) = (c.load(ArgId(0), "i0*S*4 + i1*4 + i2"), c.load(ArgId(1), "(P + i1)*4 + i2"));
    let y = c.bin(BinaryOp::Mul, x, cos);
    c.store(ArgId(2), "i0*T*4 + (P + i1)*4 + i2", x);
    c.store(ArgId(3), "i0*T*4 + (P + i1)*4 + i2", y);
    plan.kernels.push(Kernel { name: "append".into(), spec: c.spec, variants: Vec::new() });

    let mut c = Case::new(&["B", "4", "P + S"], &sizes);
    c.spec.name = "total".into();
    c.spec.args = vec![
        arg("k", Space::Kv(0), Storage::F32, "B*T*4", false),
        arg("v", Space::Kv(0), Storage::F32, "B*T*4", false),
        arg("y", Space::Arena, Storage::F32, "B*8", true),
        arg("next", Space::Ints, Storage::I32, "B", true),
    ];
    let at = "i0*T*4 + i2*4 + i1";
    let (k, v) = (c.load(ArgId(0), at), c.load(ArgId(1), at));
    c.spec.anchor = Anchor::Row { stats: [k, v].map(|value| Stat { op: ReduceOp::Sum, value, finish: None }).to_vec() };
    let (k, v, old) = (c.stat(0), c.stat(1), c.load(ArgId(3), "i0"));
    let one = c.spec.exprs.i32(1);
    let next = c.bin(BinaryOp::Add, old, one);
    for (arg, index, value) in [(2, "i0*8 + i1", k), (2, "i0*8 + 4 + i1", v), (3, "i0", next)] {
        c.spec.stores.push(Store { arg: ArgId(arg), index: d(index), value, when: None, per_row: true });
    }
    plan.kernels.push(Kernel { name: "total".into(), spec: c.spec, variants: Vec::new() });

    let kv = |part| BufferRef::Kv { slot: 0, part };
    let port = |name: &str, storage, shape: &[&str], buffer| Port {
        name: name.into(),
        storage,
        shape: shape.iter().map(|s| d(s)).collect(),
        buffer,
        fill: InputFill::Required,
    };
    for (name, fixed) in [("prefill", Vec::new()), ("decode", vec![("S".to_string(), 1)])] {
        let mut p = empty_program();
        p.name = name.into();
        p.fixed = fixed;
        p.at_most = vec![("B".to_string(), 4)];
        let decl = |name: &str, shape: &[&str], slot| ValueDecl {
            name: name.into(),
            storage: Storage::F32,
            shape: shape.iter().map(|s| d(s)).collect(),
            slot,
            live: (0, 1),
        };
        p.values = vec![decl("x", &["B", "S", "4"], 0), decl("y", &["B", "8"], 1)];
        p.arena.sizes = vec![d("B*S*4"), d("B*8")];
        p.inputs = vec![port("x", Storage::F32, &["B", "S", "4"], BufferRef::Value(0))];
        p.outputs = vec![
            port("y", Storage::F32, &["B", "8"], BufferRef::Value(1)),
            port("next", Storage::I32, &["B"], BufferRef::State(0)),
        ];
        let args = vec![BufferRef::Value(0), BufferRef::Weight(0), kv(KvPart::K), kv(KvPart::V)];
        p.steps.push(Step { kernel: 0, args, label: "append".into(), when: None });
        let args = vec![kv(KvPart::K), kv(KvPart::V), BufferRef::Value(1), BufferRef::State(0)];
        p.steps.push(Step { kernel: 1, args, label: "total".into(), when: None });
        plan.programs.push(p);
    }
    plan
}

#[test]
fn cache_states_and_rotary_tables_live_between_runs() {
    let mut e = bind(cached(), &Source::default(), &[2, 6, 9, 9]).unwrap();
    for capacity in [9u64, 21] {
        if capacity != 9 {
            e.resize(&Extent(vec![2, 6, capacity, capacity])).unwrap();
        }
        e.write_state(0, &[2, 1, 0, capacity], &[10, 20]).unwrap();
        let x = Random(4).floats(2 * 6 * 4);
        let run = |e: &mut CpuExecutor, program: usize, lo: usize, hi: usize| {
            let s = hi - lo;
            let rows = (0..2).flat_map(|b| x[b * 24 + lo * 4..b * 24 + hi * 4].to_vec()).collect();
            let t = Tensor::f32(&[2, s as u64, 4], rows).unwrap();
            e.run(program, &[2, s as u64, lo as u64, capacity], &[&t], &[1, 0]).unwrap()
        };
        run(&mut e, 0, 0, 4);
        run(&mut e, 1, 4, 5);
        let out = run(&mut e, 1, 5, 6);
        assert_eq!(out[0].as_i32().unwrap(), [13, 23]);
        assert_eq!(out[1].shape(), [2, 8]);
        let y = out[1].as_f32().unwrap();
        for b in 0..2 {
            for i in 0..4 {
                let freq = [1.0f64, 0.5, 0.1f32 as f64, 0.01f32 as f64][i];
                let at = |t: usize| f64::from(x[b * 24 + t * 4 + i]);
                let k: f64 = (0..6).map(at).sum();
                let v: f64 = (0..6).map(|t| at(t) * 2.0 * (t as f64 * freq).cos()).sum();
                assert!((f64::from(y[b * 8 + i]) - k).abs() < 1e-5);
                assert!((f64::from(y[b * 8 + 4 + i]) - v).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn nothing_is_made_after_the_first_run() {
    let mut e = bind(cached(), &Source::default(), &[4, 6, 64, 64]).unwrap();
    let mut made = None;
    for p in 0..40u64 {
        let t = Tensor::f32(&[3, 1, 4], vec![1.0; 12]).unwrap();
        e.run(1, &[3, 1, p, 64], &[&t], &[0]).unwrap();
        let c = e.counters();
        assert_eq!((c.buffers, c.pipelines), *made.get_or_insert((c.buffers, c.pipelines)));
        assert_eq!((c.dispatches, c.writes, c.read_bytes), (2 * (p + 1), p + 1, (p + 1) * 96));
    }
    assert_eq!(e.memory_bytes()[..2], [64 * 4 * 4, 2 * 4 * 64 * 4 * 4]);
}

#[test]
fn sizes_inputs_and_outputs_are_checked() {
    let mut e = bind(cached(), &Source::default(), &[8, 6, 9, 9]).unwrap();
    let t = |b: u64, s: u64| Tensor::f32(&[b, s, 4], vec![0.0; (b * s * 4) as usize]).unwrap();
    assert!(matches!(e.run(0, &[5, 1, 0, 9], &[&t(5, 1)], &[]), Err(Error::Limit { limit: 4, .. })));
    assert!(matches!(e.run(1, &[1, 2, 0, 9], &[&t(1, 2)], &[]), Err(Error::Limit { .. })));
    assert!(matches!(e.run(0, &[1, 1, 0, 10], &[&t(1, 1)], &[]), Err(Error::Limit { .. })));
    assert!(matches!(e.run(0, &[1, 1, 0], &[&t(1, 1)], &[]), Err(Error::Plan(_))));
    assert!(matches!(e.run(7, &[1, 1, 0, 9], &[&t(1, 1)], &[]), Err(Error::Plan(_))));
    assert!(matches!(e.run(0, &[1, 1, 0, 9], &[&t(1, 1)], &[2]), Err(Error::Plan(_))));
    assert!(matches!(e.run(0, &[1, 1, 0, 9], &[], &[]), Err(Error::Inputs(_))));
    assert!(matches!(e.run(0, &[1, 1, 0, 9], &[&t(1, 2)], &[]), Err(Error::Shape { .. })));
    assert!(matches!(e.run(0, &[1, 6, 5, 9], &[&t(1, 6)], &[]), Err(Error::Kernel { .. })));
    assert!(matches!(e.write_state(0, &[2, 1, 0, 9], &[1]), Err(Error::Shape { .. })));
    assert!(e.run(0, &[1, 1, 0, 9], &[&t(1, 1)], &[0]).is_ok());
}

#[test]
fn a_plan_that_contradicts_itself_is_refused() {
    let refused = |change: fn(&mut Plan)| {
        let mut plan = cached();
        change(&mut plan);
        bind(plan, &Source::default(), &[2, 6, 9, 9]).err().unwrap()
    };
    let plan_error = |change: fn(&mut Plan)| assert!(matches!(refused(change), Error::Plan(_)));
    plan_error(|p| p.programs[0].steps[0].kernel = 9);
    plan_error(|p| p.programs[0].steps[0].args[0] = BufferRef::Value(9));
    plan_error(|p| p.programs[0].steps[0].args[0] = BufferRef::State(0));
    plan_error(|p| p.programs[0].steps[0].args[2] = BufferRef::Weight(0));
    plan_error(|p| p.programs[0].steps[0].args.truncate(2));
    plan_error(|p| p.programs[0].values[0].slot = 5);
    plan_error(|p| p.kernels[0].spec.stores.clear());
    plan_error(|p| p.programs[0].outputs[0].buffer = BufferRef::State(0));
    assert!(matches!(refused(|p| p.programs[0].arena.sizes[0] = d("B*T*1000000000000000")), Error::Limit { .. }));
    let mut plan = cached();
    plan.kernels[0].spec.args[0].len = d("B*S*T*400");
    let mut e = bind(plan, &Source::default(), &[2, 6, 9, 9]).unwrap();
    let t = Tensor::f32(&[1, 1, 4], vec![0.0; 4]).unwrap();
    assert!(matches!(e.run(0, &[1, 1, 0, 9], &[&t], &[]), Err(Error::Kernel { .. })));
}

#[test]
fn stored_tensors_are_cut_transposed_and_joined() {
    let mut c = Case::new(&["5", "3"], &[]);
    let w = c.arg(Given::Weight(Storage::F32, vec![0; 60]));
    let out = c.arg(Given::Out(15));
    let v = c.load(w, "i0*3 + i1");
    c.store(out, "i0*3 + i1", v);
    let (mut plan, mut source, _) = c.plan();
    let bytes = |v: &[f32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let tensor =
        |shape: &[u64], v: &[f32]| TensorData { storage: Storage::F32, shape: shape.to_vec(), bytes: bytes(v) };
    source.0.insert("t".into(), tensor(&[3, 4], &[0., 1., 2., 3., 10., 11., 12., 13., 20., 21., 22., 23.]));
    source.0.insert("u".into(), tensor(&[3, 3], &[5., 6., 7., 8., 9., 10., 11., 12., 13.]));
    plan.weights[0].shape = vec![d("5"), d("3")];
    plan.weights[0].source = WeightSource::Parts(vec![
        Part { tensor: "t".into(), transpose: true, rows: Some((1, 4)) },
        Part { tensor: "u".into(), transpose: false, rows: Some((0, 2)) },
    ]);
    let mut seen = Vec::new();
    let mut e = CpuBackend::new()
        .bind(Arc::new(plan), &source, &Extent(Vec::new()), &mut |done, all| seen.push((done, all)))
        .unwrap();
    let got = e.run(0, &[], &[], &[0]).unwrap();
    let want = [1., 11., 21., 2., 12., 22., 3., 13., 23., 5., 6., 7., 8., 9., 10.];
    assert_eq!(got[0].as_f32().unwrap(), want);
    assert_eq!(seen, [(60, 60)]);
}
