//! Damaged files: whatever their bytes say, a loader answers with a model or a typed error, soon, and takes no memory on
//! the strength of a header.
//!
//! ```text
//! cargo test --workspace --test fuzz                                              # 4,000 files a format
//! FRIT_FUZZ=1000000 cargo test --release --workspace --test fuzz -- --nocapture
//! ```
//! Case i of a format is the same file on every machine; FRIT_FUZZ_FROM=i starts there.

use frit::{BackendChoice, Session, model_source};
use frit_plan::format::FritFile;
use peak_alloc::PeakAlloc;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes that a case may take at most; every seed is below 64 KiB.
const MEMORY_LIMIT: usize = 64 << 20;
/// After this time on processors a case counts as hung; after [`STUCK`] by the clock too, if it only waits.
const HUNG: Duration = Duration::from_secs(60);
const STUCK: Duration = Duration::from_secs(600);
/// One in so many files that load is compiled too.
const COMPILED: u64 = 64;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hostile").join(path)
}
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().unwrap_or_else(|e| panic!("{name}={v}: {e}")))
}

/// Xorshift* of the case's number.
struct Random(u64);

impl Random {
    fn new(case: u64) -> Random {
        Random((case + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
    /// A place, two times out of three among the first bytes, where headers are.
    fn place(&mut self, len: usize) -> usize {
        let near = len.min(768);
        if self.below(3) > 0 { self.below(near) } else { self.below(len) }
    }
}

const NUMBERS: [u64; 12] =
    [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, i64::MAX as u64, 1 << 63, u64::MAX];
const WORDS: [&str; 10] =
    ["null", "-1", "1e999", "18446744073709551616", "\"\"", "[[]]", "{}", "../../x", "4294967296", "NaN"];

fn mutate(seed: &[u8], other: &[u8], r: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + r.below(4) {
        let len = bytes.len();
        let at = r.place(len);
        let end = (at + 1 + r.below(32)).min(len);
        match r.below(11) {
            _ if len == 0 => bytes.push(r.next() as u8),
            0 | 1 => bytes[at] ^= 1 << r.below(8),
            2 => bytes[at] = r.next() as u8,
            3 => {
                let n = NUMBERS[r.below(NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][r.below(4)].min(len - at);
                bytes[at..at + width].copy_from_slice(&n[..width]);
            }
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(at..end)),
            6 => {
                let part = bytes[at..end].to_vec();
                let to = r.place(len);
                bytes.splice(to..to, part);
            }
            7 => {
                let word = WORDS[r.below(WORDS.len())];
                bytes.splice(at..end.min(at + 4), word.bytes());
            }
            8 => {
                // A number in decimal.
                if let Some(from) = (at..len).find(|i| bytes[*i].is_ascii_digit()) {
                    let to = (from..len).find(|i| !bytes[*i].is_ascii_digit()).unwrap_or(len);
                    let n = NUMBERS[r.below(NUMBERS.len())].to_string();
                    bytes.splice(from..to, n.into_bytes());
                }
            }
            9 => {
                let from = r.below(other.len());
                let part = &other[from..(from + 1 + r.below(64)).min(other.len())];
                bytes.splice(at..end, part.iter().copied());
            }
            _ => {
                let to = r.place(len);
                bytes.swap(at, to);
            }
        }
    }
    bytes
}

/// Time that the threads of this process have had on processors, to 10 ms: a busy machine does not lengthen it. By the
/// clock where the system does not tell.
fn processor_time(clock: Instant) -> Duration {
    let ticks = || -> Option<u64> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
    };
    ticks().map_or_else(|| clock.elapsed(), |ticks| Duration::from_millis(10 * ticks))
}

/// Cases run one format after the other, so that each is charged its own memory.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(|e| e.into_inner())
}

/// Runs the cases of a format. `load` is given the damaged file and whether to go further than loading; it tells whether
/// the file was accepted.
fn cases(format: &'static str, seeds: &[Vec<u8>], file: &Path, load: &mut dyn FnMut(bool) -> bool) {
    let _alone = alone();
    let (from, count) = (number("FRIT_FUZZ_FROM", 0), number("FRIT_FUZZ", 4000));
    let clock = Instant::now();
    let millis = |t: Duration| t.as_millis() as u64;
    // Of the case that runs: the processor's time and the clock's when it began, and its number.
    let begun = Arc::new([processor_time(clock), clock.elapsed()].map(|t| AtomicU64::new(millis(t))));
    let running = Arc::new(AtomicU64::new(from));
    let (watch, number, done) = (Arc::clone(&begun), Arc::clone(&running), Arc::new(AtomicU64::new(0)));
    let ended = Arc::clone(&done);
    let watcher = std::thread::spawn(move || {
        while ended.load(Relaxed) == 0 {
            std::thread::sleep(Duration::from_millis(200));
            let since = |now: Duration, k: usize| now.saturating_sub(Duration::from_millis(watch[k].load(Relaxed)));
            let (busy, waited) = (since(processor_time(clock), 0), since(clock.elapsed(), 1));
            if (busy > HUNG || waited > STUCK) && ended.load(Relaxed) == 0 {
                eprintln!("{format}: case {} is hung: {busy:?} on processors in {waited:?}", number.load(Relaxed));
                std::process::exit(101);
            }
        }
    });
    let (mut accepted, mut slow, mut slowest, mut most) = (0u64, 0u64, Duration::ZERO, 0usize);
    let mut faults = Vec::new();
    for case in from..from + count {
        let mut r = Random::new(case);
        let (a, b) = (r.below(seeds.len()), r.below(seeds.len()));
        fs::write(file, mutate(&seeds[a], &seeds[b], &mut r)).unwrap();
        running.store(case, Relaxed);
        let start = processor_time(clock);
        begun[0].store(millis(start), Relaxed);
        begun[1].store(millis(clock.elapsed()), Relaxed);
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        match catch_unwind(AssertUnwindSafe(|| load(case % COMPILED == 0))) {
            Ok(true) => accepted += 1,
            Ok(false) => {}
            Err(_) => faults.push(format!("case {case} panics")),
        }
        let time = processor_time(clock).saturating_sub(start);
        let memory = MEMORY.peak_usage().saturating_sub(before);
        if memory > MEMORY_LIMIT {
            faults.push(format!("case {case} takes {memory} bytes"));
        }
        (slowest, most) = (slowest.max(time), most.max(memory));
        slow += u64::from(time > Duration::from_secs(1));
        assert!(faults.len() < 20, "{format}: {faults:?}");
    }
    done.store(1, Relaxed);
    watcher.join().unwrap();
    println!(
        "{format}: {count} files, {accepted} accepted, {} faults, {slow} above 1 s of processor time, slowest {slowest:?}, most memory {} kB",
        faults.len(),
        most / 1000
    );
    assert!(faults.is_empty(), "{format}: {faults:?}");
    assert!(accepted > 0 && accepted < count, "{format}: {accepted} of {count} files were accepted");
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn model(path: &Path, further: bool) -> bool {
    match frit_compiler::ingest::load(path) {
        Ok(model) => {
            if further {
                let _ = model_source::compiled(&model);
            }
            true
        }
        Err(_) => false,
    }
}

#[test]
fn onnx() {
    let names = ["attention", "control", "quantised", "decoder"];
    let seeds: Vec<Vec<u8>> = names.iter().map(|n| read(&fixture(&format!("onnx/{n}.onnx")))).collect();
    let dir = scratch();
    let file = dir.path().join("m.onnx");
    cases("onnx", &seeds, &file, &mut |further| model(&file, further));
}

#[test]
fn gguf() {
    let dir = scratch();
    let file = dir.path().join("m.gguf");
    cases("gguf", &[read(&fixture("gguf/good.gguf"))], &file, &mut |further| model(&file, further));
}

/// One file of a directory is damaged, the others are those of its seed.
fn directory(format: &'static str, damaged: &str, kept: &str) {
    const FAMILIES: [&str; 3] = ["llama", "gpt2", "bert"];
    let dir = scratch();
    for family in FAMILIES {
        let own = dir.path().join(family);
        fs::create_dir(&own).unwrap();
        fs::copy(fixture(&format!("hf/{family}/{kept}")), own.join(kept)).unwrap();
    }
    let seeds: Vec<Vec<u8>> = FAMILIES.iter().map(|f| read(&fixture(&format!("hf/{f}/{damaged}")))).collect();
    let file = dir.path().join("damaged");
    cases(format, &seeds, &file, &mut |further| {
        let mut any = false;
        for family in FAMILIES {
            let own = dir.path().join(family);
            fs::copy(&file, own.join(damaged)).unwrap();
            any |= model(&own, further);
        }
        any
    });
}

#[test]
fn safetensors() {
    directory("safetensors", "model.safetensors", "config.json");
}
#[test]
fn config() {
    directory("config.json", "config.json", "model.safetensors");
}

#[test]
fn artifacts() {
    let dir = scratch();
    let mut seeds = Vec::new();
    for path in ["onnx/control.onnx", "onnx/attention.onnx", "hf/bert"] {
        let loaded = model_source::open(&fixture(path), &mut |_| {}).unwrap();
        let file = dir.path().join("seed.frit");
        frit_plan::format::write(&file, &loaded.plan, &*loaded.weights, &mut |_, _| {}).unwrap();
        seeds.push(read(&file));
    }
    let file = dir.path().join("m.frit");
    cases(".frit", &seeds, &file, &mut |further| match FritFile::open(&file) {
        Ok(artifact) => {
            if further {
                let plan = Arc::clone(artifact.plan());
                let _ = Session::builder().backend(BackendChoice::Cpu).bind(plan, &artifact);
            }
            true
        }
        Err(_) => false,
    });
}

/// Chat templates that ask for more than there is: each is refused for its reason, in less than this time and memory.
#[test]
fn templates() {
    const SOON: Duration = Duration::from_secs(20);
    let nested = |depth: usize, times: usize, then: &str| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        format!(
            "{{% set ns = namespace(x=[]) %}}{{% for i in range({times}) %}}{{% set ns.x = {open}ns.x{close} %}}{{% endfor %}}{then}"
        )
    };
    let chain = |part: &str| format!("{{{{ 1{} }}}}", part.repeat(65_000 / part.len()));
    let doubled = |then: &str| {
        format!("{{% set ns = namespace(x=[1]) %}}{{% for i in range(60) %}}{{% set ns.x = {then} %}}{{% endfor %}}")
    };
    let cases: Vec<(String, &str)> = vec![
        ("{{ 'a' * 10**9 }}".into(), "fuel"),
        ("{{ 'a' * 30000000 }}".into(), "too large to be written"),
        (doubled("ns.x | string ~ ns.x | string"), "fuel"),
        ("{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}".into(), "fuel"),
        ("{% set x = 'a' * 1000000 %}{{ x | replace('a', x) }}".into(), "fuel"),
        ("{% set x = 'a' * 1000000 %}{{ x.strip(x) }}".into(), "fuel"),
        ("{% set x = 'a' * 2000000 %}{{ x.split('') | length }}".into(), "fuel"),
        ("{{ 'a' | indent(10**9) }}".into(), "fuel"),
        ("{{ '%1000000000d' | format(1) }}".into(), "fuel"),
        ("{{ 10 ** 10**9 }}".into(), "unable to calculate"),
        ("{% for a in range(10**12) %}{% endfor %}".into(), "too many elements"),
        ("{% for a in range(10**4) %}{% for b in range(10**4) %}{% endfor %}{% endfor %}".into(), "fuel"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}".into(), "recursion limit"),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".into(), "recursion limit"),
        (nested(1, 100_000, ""), "fuel"),
        (nested(40, 3000, "{{ ns.x }}"), "too deep"),
        (nested(40, 3000, "{{ ns.x | tojson }}"), "too deep"),
        (format!("{{{{ {}1{} }}}}", "(".repeat(30_000), ")".repeat(30_000)), "recursion limit"),
        (format!("{}{}", "{% if 1 %}".repeat(3000), "{% endif %}".repeat(3000)), "recursion limit"),
        (chain("()"), "not callable"),
        (chain("[0]"), "undefined"),
        (chain("~1"), "are read"),
        (" ".repeat(70_000), "are read"),
        ("{{ debug() }}".into(), "unknown"),
        ("{% include '/etc/passwd' %}".into(), "unknown"),
    ];
    let _alone = alone();
    let deep = [chain("+1"), chain(" if 1 else 1"), chain(" and 1"), chain("**1")];
    let messages = [frit::chat::Message::new("user", "x")];
    let mut model = model_source::open(&fixture("hf/llama"), &mut |_| {}).unwrap().plan.model.clone();
    for (template, expected) in cases.into_iter().chain(deep.into_iter().map(|template| (template, ""))) {
        let said: String = template.chars().take(80).collect();
        model.chat = Some(frit_plan::ChatInfo { template, bos: None, eos: None });
        let (start, before) = (Instant::now(), MEMORY.current_usage());
        MEMORY.reset_peak_usage();
        let made = frit::chat::ChatTemplate::of(&model).unwrap().render(&messages, true);
        let (time, memory) = (start.elapsed(), MEMORY.peak_usage().saturating_sub(before));
        assert!(time < SOON && memory < 2 * MEMORY_LIMIT, "{said}: {time:?}, {memory} bytes");
        match made {
            Ok(text) => assert!(expected.is_empty() && text.len() < 100, "{said} is accepted"),
            Err(e) => assert!(!expected.is_empty() && e.to_string().contains(expected), "{said}: {e}"),
        }
    }
}
