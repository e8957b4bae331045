use super::*;
use crate::*;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use frit_kernels::spec::{Anchor, Arg, ArgId, Expr, Exprs, KernelSpec, MatmulPrecision, SizeSlot, Space, Store};
use proptest::prelude::*;
use std::collections::HashMap;

struct Tensors(HashMap<String, TensorData>);

impl TensorSource for Tensors {
    fn read(&self, tensor: &str) -> Result<TensorData, Box<dyn std::error::Error + Send + Sync>> {
        self.0.get(tensor).cloned().ok_or_else(|| format!("no {tensor}").into())
    }
}

fn d(s: &str) -> Dim {
    s.parse().unwrap()
}

fn weight(name: &str, storage: Storage, shape: &[u64], placement: Placement) -> WeightDecl {
    WeightDecl {
        name: name.into(),
        storage,
        shape: shape.iter().map(|d| Dim::from(*d)).collect(),
        placement,
        source: WeightSource::Parts(vec![Part { tensor: name.into(), transpose: false, rows: None }]),
    }
}

/// `y[b, s] = x[b, s] * gain[0]`, and weights of three storage types.
fn model() -> (Plan, Tensors) {
    let mut exprs = Exprs::default();
    let x = exprs.add(Expr::Load { arg: ArgId(0), index: d("i0*S + i1") }, frit_kernels::dtype::Scalar::F32);
    let g = exprs.add(Expr::Load { arg: ArgId(1), index: Dim::zero() }, frit_kernels::dtype::Scalar::F32);
    let value = exprs.binary(frit_kernels::spec::BinaryOp::Mul, x, g);
    let arg = |name: &str, space, len: &str, written| Arg {
        name: name.into(),
        space,
        storage: Storage::F32,
        len: d(len),
        written,
        rounded: None,
    };
    let spec = KernelSpec {
        name: "scale".into(),
        domain: vec![d("B"), d("S")],
        anchor: Anchor::Map,
        few_rows: false,
        args: vec![
            arg("x", Space::Arena, "B*S", false),
            arg("gain", Space::Side, "4", false),
            arg("y", Space::Arena, "B*S", true),
        ],
        exprs,
        stores: vec![Store { arg: ArgId(2), index: d("i0*S + i1"), value, when: None, per_row: false }],
        left: Vec::new(),
        columns: None,
        stats_over: None,
        partials: None,
        precision: MatmulPrecision::Auto,
        aliases: vec![],
        sizes: vec![SizeSlot { name: "B".into(), index: 0 }, SizeSlot { name: "S".into(), index: 1 }],
    };
    let value = |name: &str, slot| ValueDecl {
        name: name.into(),
        storage: Storage::F32,
        shape: vec![d("B"), d("S")],
        slot,
        live: (0, 0),
    };
    let port = |name: &str, i| Port {
        name: name.into(),
        storage: Storage::F32,
        shape: vec![d("B"), d("S")],
        buffer: BufferRef::Value(i),
        fill: InputFill::Required,
    };
    let plan = Plan {
        version: PLAN_VERSION,
        compiler: "test".into(),
        model: ModelInfo {
            name: "m".into(),
            architecture: "none".into(),
            task: Task::Graph,
            layers: 0,
            context: 0,
            vocab: 0,
            eos: vec![],
            bos: None,
            source_vocab: 0,
            start: Vec::new(),
            tokenizer: Some("{\"tokens\": [\"ä\"]}".into()),
            cache_obstacle: None,
            retention: None,
            passes: None,
            rules: Default::default(),
            chat: Some(ChatInfo { template: "{{ messages }}".into(), bos: None, eos: Some("</s>".into()) }),
        },
        sizes: vec![
            SizeDecl { name: "B".into(), min: 1, max: None },
            SizeDecl { name: "S".into(), min: 1, max: Some(128) },
        ],
        weights: vec![
            weight("gain", Storage::F32, &[4], Placement::Side),
            weight("matrix", Storage::F16, &[2, 3], Placement::Own),
            weight("tied", Storage::F16, &[3, 2], Placement::Own),
            weight("blocks", Storage::Q8_0, &[2, 64], Placement::Own),
            WeightDecl {
                name: "made".into(),
                storage: Storage::F32,
                shape: vec![Dim::from(2u64)],
                placement: Placement::Side,
                source: WeightSource::Inline(vec![0.1, -3.3e-12]),
            },
        ],
        kv_slots: vec![],
        states: vec![],
        kernels: vec![Kernel { name: "scale".into(), spec, variants: vec![] }],
        programs: vec![Program {
            name: "forward".into(),
            fixed: vec![],
            at_most: vec![("B".into(), 4)],
            limits: Vec::new(),
            instead: None,
            inputs: vec![port("x", 0)],
            outputs: vec![port("y", 1)],
            values: vec![value("x", 0), value("y", 1)],
            arena: SlotLayout { sizes: vec![d("B*S"), d("B*S")] },
            ints: SlotLayout::default(),
            steps: vec![Step {
                kernel: 0,
                args: vec![BufferRef::Value(0), BufferRef::Weight(0), BufferRef::Value(1)],
                label: "scale".into(),
                when: None,
            }],
        }],
        report: FusionReport::default(),
    };
    let data = |storage: Storage, shape: &[u64], byte: u8| TensorData {
        storage,
        shape: shape.to_vec(),
        bytes: (0..storage.size_bytes(shape.iter().product()).unwrap()).map(|i| byte.wrapping_add(i as u8)).collect(),
    };
    let tensors = HashMap::from([
        ("gain".to_owned(), data(Storage::F32, &[4], 1)),
        ("matrix".to_owned(), data(Storage::F16, &[2, 3], 7)),
        ("tied".to_owned(), data(Storage::F16, &[3, 2], 7)),
        ("blocks".to_owned(), data(Storage::Q8_0, &[2, 64], 9)),
    ]);
    (plan, Tensors(tensors))
}

fn written() -> (tempfile::TempDir, PathBuf, Plan, Tensors) {
    let (plan, tensors) = model();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.frit");
    write(&path, &plan, &tensors, &mut |_, _| {}).unwrap();
    (dir, path, plan, tensors)
}

/// Opens a file and reads all of it.
fn read_all(path: &Path) -> Result<(Plan, Vec<(String, TensorData)>), String> {
    let f = FritFile::open(path).map_err(|e| e.to_string())?;
    let mut tensors = Vec::new();
    for (n, _) in f.tensors() {
        tensors.push((n.to_owned(), f.read(n).map_err(|e| e.to_string())?));
    }
    Ok(((**f.plan()).clone(), tensors))
}

#[test]
fn plan_and_tensors_come_back_as_they_were() {
    let (_dir, path, plan, tensors) = written();
    let f = FritFile::open(&path).unwrap();
    assert_eq!(**f.plan(), plan);
    for (n, t) in &tensors.0 {
        assert_eq!(f.read(n).unwrap(), *t, "{n}");
    }
    f.verify_tensors().unwrap();
    assert!(f.read("other").is_err());
}

#[test]
fn equal_tensors_are_stored_once() {
    let (_dir, path, _, _) = written();
    let f = FritFile::open(&path).unwrap();
    let shared: Vec<_> = f.tensors().filter_map(|(n, t)| Some((n, t.alias_of.as_deref()?))).collect();
    assert_eq!(shared, [("tied", "matrix")]);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), 3);
}

#[test]
fn any_safetensors_reader_opens_the_file() {
    let (_dir, path, _, tensors) = written();
    let bytes = std::fs::read(&path).unwrap();
    let st = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let t = st.tensor("matrix").unwrap();
    assert_eq!((t.dtype(), t.shape()), (safetensors::Dtype::F16, &[2usize, 3][..]));
    let t = st.tensor("blocks").unwrap();
    assert_eq!((t.dtype(), t.data()), (safetensors::Dtype::U8, tensors.0["blocks"].bytes.as_slice()));
    assert_eq!(t.shape(), [4 * 34]);
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let (_a, p, _, _) = written();
    let (_b, q, _, _) = written();
    assert_eq!(std::fs::read(p).unwrap(), std::fs::read(q).unwrap());
}

#[test]
fn every_truncation_is_refused() {
    let (dir, path, _, _) = written();
    let bytes = std::fs::read(&path).unwrap();
    let cut = dir.path().join("cut.frit");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let places = (0..32).chain([header - 1, header, header + 1, bytes.len() - 1]).chain((32..bytes.len()).step_by(97));
    for n in places {
        std::fs::write(&cut, &bytes[..n]).unwrap();
        let e = read_all(&cut).expect_err(&format!("{n} bytes"));
        assert!(e.contains("cut.frit"), "{e}");
    }
    std::fs::write(&cut, [&bytes[..], b"more"].concat()).unwrap();
    assert!(read_all(&cut).unwrap_err().contains("truncated or altered"));
}

#[test]
fn an_altered_part_is_named() {
    let (dir, path, _, _) = written();
    let bytes = std::fs::read(&path).unwrap();
    let changed = |from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        let mut b = bytes.clone();
        b[at..at + to.len()].copy_from_slice(to);
        let p = dir.path().join("bad.frit");
        std::fs::write(&p, b).unwrap();
        read_all(&p).unwrap_err()
    };
    assert!(changed("ä".as_bytes(), b"xx").contains("the tokenizer does not match its hash"));
    assert!(changed(b"architecture", b"architektur_").contains("bad.frit"));
    assert!(changed(b"frit.version\":\"2", b"frit.version\":\"9").contains("version 9"));
    assert!(changed(b"none", b"nine").contains("the plan does not match its hash"));
    let mut b = bytes.clone();
    *b.last_mut().unwrap() ^= 1;
    let p = dir.path().join("tail.frit");
    std::fs::write(&p, b).unwrap();
    assert!(FritFile::open(&p).is_ok());
    assert!(read_all(&p).unwrap_err().contains("tensor `blocks` does not match its hash"));
}

#[test]
fn a_plain_safetensors_file_is_not_an_artifact() {
    let dir = tempfile::tempdir().unwrap();
    let p = dir.path().join("plain.safetensors");
    let t = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![2], &[1, 2]).unwrap();
    std::fs::write(&p, safetensors::serialize([("a", t)], None).unwrap()).unwrap();
    assert!(matches!(FritFile::open(&p), Err(FormatError::NotArtifact { .. })));
    assert!(matches!(FritFile::open(dir.path()), Err(FormatError::NotArtifact { .. })));
}

#[test]
fn an_absurd_header_length_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let p = dir.path().join("x.frit");
    std::fs::write(&p, [&u64::MAX.to_le_bytes()[..], b"{\"a\":1}"].concat()).unwrap();
    assert!(matches!(FritFile::open(&p), Err(FormatError::Limit { .. })));
}

#[test]
fn a_failed_write_leaves_nothing_behind() {
    let (plan, mut tensors) = model();
    tensors.0.remove("blocks");
    let dir = tempfile::tempdir().unwrap();
    let e = write(&dir.path().join("m.frit"), &plan, &tensors, &mut |_, _| {}).unwrap_err();
    assert!(e.to_string().contains("blocks"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_plan_that_contradicts_itself_is_refused() {
    let cases: Vec<(&str, fn(&mut Plan))> = vec![
        ("kernel 1 of 1", |p| p.programs[0].steps[0].kernel = 1),
        ("2 arguments, not 3", |p| {
            p.programs[0].steps[0].args.pop();
        }),
        ("does not exist", |p| p.programs[0].steps[0].args[0] = BufferRef::Value(7)),
        ("does not exist", |p| p.programs[0].steps[0].args[1] = BufferRef::Weight(99)),
        ("read only", |p| p.programs[0].steps[0].args[2] = BufferRef::Weight(0)),
        ("is f32, its buffer f16", |p| p.programs[0].steps[0].args[1] = BufferRef::Weight(1)),
        ("lies in slot 2 of 2", |p| p.programs[0].values[1].slot = 2),
        ("needs `B*S` elements", |p| p.programs[0].arena.sizes[0] = Dim::from(3u64)),
        ("is no size of the plan", |p| p.programs[0].values[0].shape[0] = "Q".parse().unwrap()),
        ("is no size of the plan", |p| p.programs[0].values[0].shape[0] = Dim::axis(0)),
        ("has no buffer", |p| p.programs[0].inputs[0].buffer = BufferRef::Weight(0)),
        ("two of the sizes are named", |p| p.sizes[1].name = "B".into()),
        ("is not number 0", |p| p.sizes.swap(0, 1)),
        ("undeclared", |p| p.kernels[0].spec.args[0].len = "W".parse().unwrap()),
        ("made of nothing", |p| p.weights[0].source = WeightSource::Parts(vec![])),
        ("sets size `B`", |p| p.programs[0].fixed.push(("B".into(), 0))),
        ("version 0", |p| p.version = 0),
    ];
    for (want, change) in cases {
        let (mut plan, _) = model();
        change(&mut plan);
        let e = plan.validate().expect_err(want).to_string();
        assert!(want == "undeclared" || e.contains(want), "{want}: {e}");
    }
    assert_eq!(model().0.validate(), Ok(()));
}

#[test]
fn rows_outside_a_tensor_are_refused() {
    let (mut plan, tensors) = model();
    if let WeightSource::Parts(p) = &mut plan.weights[1].source {
        p[0].rows = Some((1, 3));
    }
    let dir = tempfile::tempdir().unwrap();
    let e = write(&dir.path().join("m.frit"), &plan, &tensors, &mut |_, _| {}).unwrap_err();
    assert!(e.to_string().contains("rows 1..3 of tensor `matrix`, which has 2"), "{e}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_flipped_bit_is_an_error_or_changes_nothing(at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let (dir, path, _, _) = written();
        let whole = read_all(&path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let i = at.index(bytes.len());
        bytes[i] ^= 1 << bit;
        let p = dir.path().join("flipped.frit");
        std::fs::write(&p, bytes).unwrap();
        if let Ok(found) = read_all(&p) {
            prop_assert_eq!(found, whole, "byte {}", i);
        }
    }
    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), json in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let p = dir.path().join("random.frit");
        let b = if json { [&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat() } else { bytes };
        std::fs::write(&p, b).unwrap();
        prop_assert!(FritFile::open(&p).is_err());
    }
}
