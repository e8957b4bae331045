//! Short ways to run a text.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use frit_simt::{Argument, Buffer, Counters, Error, Language, Launch, Options, Region, Violation, ViolationKind, run};

/// A launch under construction.
pub struct Run {
    text: String,
    language: Language,
    workgroup: [u32; 3],
    grid: [u32; 3],
    arguments: Vec<Argument>,
    shared: u32,
    options: Options,
}

/// What a launch left.
pub struct Left {
    pub buffers: Vec<Vec<u8>>,
    pub violations: Vec<Violation>,
    pub counters: Counters,
    pub completed: bool,
}

/// Numbers by their place.
pub fn floats(n: usize, f: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..n).map(f).collect()
}

fn bytes(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Runs `body` in 32 threads on words `%a`, `%b`, `%c`; its result is `%d`. Floats are `%x`, `%y`, `%z` and `%w`.
pub fn lanes(body: &str, words: [[u32; 32]; 3]) -> Vec<u32> {
    lanes_with(body, words, |_| {})
}

/// The same with changed options.
pub fn lanes_with(body: &str, words: [[u32; 32]; 3], change: impl FnOnce(&mut Options)) -> Vec<u32> {
    let text = format!(
        ".version 7.8
.target sm_90
.address_size 64
.visible .entry main(.param .u64 pin, .param .u64 pout)
{{
    .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<16>, %a, %b, %c, %d, %i;
    .reg .f32 %f<8>, %x, %y, %z, %w; .reg .b64 %rd<16>, %in, %out;
    ld.param.u64 %in, [pin];
    ld.param.u64 %out, [pout];
    mov.u32 %i, %tid.x;
    mad.wide.u32 %in, %i, 4, %in;
    mad.wide.u32 %out, %i, 4, %out;
    ld.global.u32 %a, [%in];
    ld.global.u32 %b, [%in+128];
    ld.global.u32 %c, [%in+256];
    mov.b32 %x, %a;
    mov.b32 %y, %b;
    mov.b32 %z, %c;
    {body}
    st.global.u32 [%out], %d;
    ret;
}}"
    );
    let bytes = words.iter().flatten().flat_map(|w| w.to_le_bytes()).collect();
    let run = Run::ptx(&text, [32, 1, 1]).input_bytes(bytes).output(32).with(|o| o.finite = false).with(change);
    let left = run.run();
    let other = |v: &&Violation| v.kind != ViolationKind::IntegerDivision;
    assert!(left.violations.iter().find(other).is_none(), "{:?}\n{text}", left.violations);
    left.words(1)
}

impl Run {
    fn new(text: &str, language: Language, workgroup: [u32; 3]) -> Run {
        let arguments = Vec::new();
        let options = Options::default();
        Run { text: text.to_owned(), language, workgroup, grid: [1; 3], arguments, shared: 0, options }
    }
    pub fn wgsl(text: &str, workgroup: [u32; 3]) -> Run {
        Run::new(text, Language::Wgsl, workgroup)
    }
    pub fn ptx(text: &str, workgroup: [u32; 3]) -> Run {
        Run::new(text, Language::Ptx, workgroup)
    }
    pub fn argument(mut self, a: Argument) -> Run {
        self.arguments.push(a);
        self
    }
    pub fn input(self, v: &[f32]) -> Run {
        let name = format!("in{}", self.arguments.len());
        self.argument(Argument::Buffer(Buffer::input(&name, bytes(v))))
    }
    pub fn input_bytes(self, v: Vec<u8>) -> Run {
        let name = format!("in{}", self.arguments.len());
        self.argument(Argument::Buffer(Buffer::input(&name, v)))
    }
    pub fn inout(self, v: &[f32]) -> Run {
        self.argument(Argument::Buffer(Buffer::inout("data", bytes(v))))
    }
    pub fn output(self, elements: usize) -> Run {
        self.argument(Argument::Buffer(Buffer::output("y", 4 * elements)))
    }
    pub fn output_half(self, elements: usize) -> Run {
        self.argument(Argument::Buffer(Buffer::output("y", 2 * elements)))
    }
    pub fn value(self, v: u32) -> Run {
        self.argument(Argument::Bytes(v.to_le_bytes().to_vec()))
    }
    pub fn grid(mut self, grid: [u32; 3]) -> Run {
        self.grid = grid;
        self
    }
    pub fn shared(mut self, bytes: u32) -> Run {
        self.shared = bytes;
        self
    }
    pub fn workgroup(mut self, workgroup: [u32; 3]) -> Run {
        self.workgroup = workgroup;
        self
    }
    pub fn inout_at(mut self, argument: usize, v: &[f32]) -> Run {
        self.arguments[argument] = Argument::Buffer(Buffer::inout("data", bytes(v)));
        self
    }
    pub fn output_bytes(mut self, argument: usize, bytes: usize) -> Run {
        self.arguments[argument] = Argument::Buffer(Buffer::output("y", bytes));
        self
    }
    pub fn regions(mut self, argument: usize, regions: Vec<Region>) -> Run {
        if let Argument::Buffer(b) = &mut self.arguments[argument] {
            b.regions = regions;
        }
        self
    }
    /// Lets an argument be written, by this launch or the one in front.
    pub fn writable(mut self, argument: usize) -> Run {
        if let Argument::Buffer(b) = &mut self.arguments[argument] {
            b.writable = true;
        }
        self
    }
    pub fn with(mut self, change: impl FnOnce(&mut Options)) -> Run {
        change(&mut self.options);
        self
    }
    fn execute(&self) -> Result<frit_simt::Outcome, Error> {
        let launch = Launch {
            kernel: "test",
            text: &self.text,
            language: self.language,
            entry: None,
            workgroup: self.workgroup,
            grid: self.grid,
            arguments: self.arguments.clone(),
            dynamic_shared_bytes: self.shared,
        };
        run(&launch, &self.options)
    }
    pub fn run(self) -> Left {
        let o = self.execute().unwrap_or_else(|e| panic!("{e}\n{}", self.text));
        Left { buffers: o.buffers, violations: o.violations, counters: o.counters, completed: o.completed }
    }
    /// Fails on any violation.
    pub fn clean(self) -> Left {
        let left = self.run();
        let all: Vec<String> = left.violations.iter().map(ToString::to_string).collect();
        assert!(all.is_empty() && left.completed, "{}", all.join("\n"));
        left
    }
    pub fn outcome(self) -> Result<frit_simt::Outcome, Error> {
        self.execute()
    }
    pub fn error(self) -> Error {
        self.execute().expect_err("an error")
    }
}

impl Left {
    pub fn words(&self, argument: usize) -> Vec<u32> {
        self.buffers[argument].chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
    }
    pub fn floats(&self, argument: usize) -> Vec<f32> {
        self.words(argument).into_iter().map(f32::from_bits).collect()
    }
    /// The one violation of a kind.
    pub fn only(&self, is: impl Fn(&ViolationKind) -> bool) -> Violation {
        let found: Vec<&Violation> = self.violations.iter().filter(|v| is(&v.kind)).collect();
        assert_eq!(found.len(), 1, "{:#?}", self.violations);
        found[0].clone()
    }
}

/// The words that one WGSL invocation puts by `put`, `puti`, `putf` and `putb`; `x` holds 0, 1, …, 7, which keeps the compiler
/// from folding. `head` names what `body` uses.
pub fn put_words(head: &str, body: &str) -> Vec<u32> {
    let text = format!(
        "@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
var<private> at: u32;
fn put(v: u32) {{ y[at] = v; at += 1u; }}
fn puti(v: i32) {{ put(bitcast<u32>(v)); }}
fn putf(v: f32) {{ put(bitcast<u32>(v)); }}
fn putb(v: bool) {{ put(select(0u, 1u, v)); }}
@compute @workgroup_size(1)
fn main() {{
    {head}
    {body}
}}"
    );
    let puts = body.matches("put").count();
    Run::wgsl(&text, [1, 1, 1]).inout(&vec![0.0; puts]).input(&floats(8, |i| i as f32)).clean().words(0)
}
