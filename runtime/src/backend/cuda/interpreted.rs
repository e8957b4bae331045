//! A driver without a GPU: it keeps device memory on the host and executes every launch with the checking interpreter.
//!
//! It is as strict as CUDA's driver and more forgetful. Work is queued and done only when somebody waits, so that a host
//! that reads too early reads old bytes. Between [`Driver::begin`] and [`Driver::end`] everything but a launch fails.
//! An address has to be the start of an allocation that was not given back. Whatever a kernel breaks turns up as an
//! illegal address at the next wait, and at every call after that.

use super::super::simt::KernelCheck;
use super::driver::{Address, DeviceInfo, Driver, DriverError, DriverResult, Function, Graph, Launch, Parameter};
use frit_kernels::emit::ptx::MAP_BYTES;
use frit_kernels::ir::TILE_COLUMNS;
use frit_plan::Matrix;
use frit_simt::{Argument, Buffer, Language, Options, TensorMap, Violation};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A GPU that is not there.
#[derive(Clone, Debug)]
pub struct Interpreted {
    shared: Arc<Mutex<Shared>>,
    info: DeviceInfo,
    memory_bytes: u64,
    cache: Option<PathBuf>,
}

/// A call that fails: the `at`th of all calls, counted from 0, with this `CUresult`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which call.
    pub at: u64,
    /// The code it fails with.
    pub code: u32,
}

#[derive(Debug, Default)]
struct Shared {
    fault: Option<Fault>,
    calls: u64,
    assembled: u64,
    waits: u64,
    replays: u64,
    launches: u64,
    live_bytes: u64,
    checks: BTreeMap<String, KernelCheck>,
}

impl Default for Interpreted {
    fn default() -> Self {
        let info = DeviceInfo {
            name: "checking interpreter".into(),
            capability: (8, 0),
            driver: 13000,
            release: String::new(),
            shared_bytes: 163 << 10,
        };
        Interpreted { shared: Arc::default(), info, memory_bytes: 4 << 30, cache: None }
    }
}

impl Interpreted {
    /// A device with so much memory.
    #[must_use]
    pub fn with_memory(mut self, bytes: u64) -> Interpreted {
        self.memory_bytes = bytes;
        self
    }
    /// Of this compute capability, under this version of the driver.
    #[must_use]
    pub fn with_capability(mut self, capability: (u32, u32), driver: i32) -> Interpreted {
        self.info.capability = capability;
        self.info.shared_bytes = if capability >= (9, 0) { 227 << 10 } else { 163 << 10 };
        self.info.driver = driver;
        self
    }
    /// Keeps machine code in this folder.
    #[must_use]
    pub fn with_cache(mut self, folder: PathBuf) -> Interpreted {
        self.cache = Some(folder);
        self
    }
    /// Makes one call fail.
    pub fn fail(&self, fault: Option<Fault>) {
        let mut s = self.lock();
        s.fault = fault;
        s.calls = 0;
    }
    /// Calls since the start or since [`Interpreted::fail`].
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }
    /// Texts that were assembled rather than taken from the cache.
    pub fn assembled(&self) -> u64 {
        self.lock().assembled
    }
    /// Times that the host waited for the device.
    pub fn waits(&self) -> u64 {
        self.lock().waits
    }
    /// Graphs that were replayed, and kernels that were launched by them or alone.
    pub fn replays_and_launches(&self) -> (u64, u64) {
        let s = self.lock();
        (s.replays, s.launches)
    }
    /// Bytes that are reserved and not given back.
    pub fn live_bytes(&self) -> u64 {
        self.lock().live_bytes
    }
    /// What the kernels did, by name.
    pub fn checks(&self) -> Vec<KernelCheck> {
        self.lock().checks.values().cloned().collect()
    }
    pub(super) fn cache_folder(&self) -> Option<PathBuf> {
        self.cache.clone()
    }
    pub(super) fn driver(&self) -> InterpretedDriver {
        InterpretedDriver {
            device: self.clone(),
            memory: BTreeMap::new(),
            next: 1 << 33,
            functions: Vec::new(),
            queue: VecDeque::new(),
            recording: None,
            graphs: BTreeMap::new(),
            sticky: None,
        }
    }
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Loaded {
    text: String,
    name: String,
    shared_bytes: u32,
    /// Sizes of by-value parameters; `None` for addresses.
    parameters: Vec<Option<usize>>,
}

#[derive(Clone, Debug)]
enum Work {
    Write(Address, Vec<u8>),
    Zero(Address, u64),
    Copy(Address, Address, u64),
    Launch(Launch),
}

pub(super) struct InterpretedDriver {
    device: Interpreted,
    memory: BTreeMap<Address, Vec<u8>>,
    next: Address,
    functions: Vec<Loaded>,
    queue: VecDeque<Work>,
    recording: Option<Vec<Launch>>,
    graphs: BTreeMap<Graph, Vec<Launch>>,
    sticky: Option<DriverError>,
}

const INVALID: u32 = 1;
const ILLEGAL_ADDRESS: u32 = 700;
const UNSUPPORTED_IN_CAPTURE: u32 = 900;
/// How machine code of this driver begins; the text follows.
const CODE: &[u8] = b"interpreted\n";

fn error(call: &'static str, code: u32, text: impl Into<String>) -> DriverError {
    let name = match code {
        INVALID => "CUDA_ERROR_INVALID_VALUE",
        DriverError::OUT_OF_MEMORY => "CUDA_ERROR_OUT_OF_MEMORY",
        ILLEGAL_ADDRESS => "CUDA_ERROR_ILLEGAL_ADDRESS",
        UNSUPPORTED_IN_CAPTURE => "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        _ => "CUDA_ERROR",
    };
    DriverError { call, code, name: name.into(), text: text.into() }
}

/// How a tensor map of this driver begins; address, columns, rows and rows of a tile follow.
const MAP: u64 = 0x7061_6d20_736f_7266;

/// The matrix of a tensor map of this driver.
fn decode(bytes: &[u8]) -> Option<(Address, TensorMap)> {
    let words: Vec<u64> =
        bytes.chunks_exact(8).map(|c| c.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b))).collect();
    match words.as_slice() {
        [MAP, at, columns, rows, tile_rows, ..] if bytes.len() == MAP_BYTES as usize => {
            Some((*at, TensorMap::of_halves(0, [*columns, *rows], [TILE_COLUMNS, *tile_rows as u32])))
        }
        _ => None,
    }
}

/// The parameters that a text declares: of each the bytes by value, or `None` for an address.
fn parameters(text: &str) -> Vec<Option<usize>> {
    let declared = text.lines().map(str::trim).filter_map(|l| l.strip_prefix(".param"));
    let size = |l: &str| l.split_once('[')?.1.split_once(']')?.0.parse().ok();
    declared.map(size).collect()
}

impl InterpretedDriver {
    /// Counts a call, and fails it if it is its turn or everything fails by now.
    fn begin_call(&mut self, call: &'static str, in_capture: bool) -> DriverResult<()> {
        if let Some(e) = &self.sticky {
            return Err(e.clone());
        }
        let (n, fault) = {
            let mut s = self.device.lock();
            s.calls += 1;
            (s.calls - 1, s.fault)
        };
        if let Some(f) = fault.filter(|f| f.at == n) {
            let e = error(call, f.code, "as it was told to");
            if e.is_sticky() {
                self.sticky = Some(e.clone());
            }
            return Err(e);
        }
        if self.recording.is_some() && !in_capture {
            return Err(error(call, UNSUPPORTED_IN_CAPTURE, "while launches are recorded"));
        }
        Ok(())
    }
    /// The bytes of a range within one allocation.
    fn range(&mut self, call: &'static str, at: Address, bytes: u64) -> DriverResult<&mut [u8]> {
        let outside = || error(call, INVALID, format!("{bytes} bytes at {at:#x} are not allocated"));
        let (base, memory) = self.memory.range_mut(..=at).next_back().ok_or_else(outside)?;
        let from = usize::try_from(at - base).map_err(|_| outside())?;
        memory.get_mut(from..from.saturating_add(bytes as usize)).ok_or_else(outside)
    }
    /// Does everything that was asked for.
    fn drain(&mut self, call: &'static str) -> DriverResult<()> {
        self.device.lock().waits += 1;
        while let Some(work) = self.queue.pop_front() {
            let done = match work {
                Work::Write(at, bytes) => self.range(call, at, bytes.len() as u64).map(|to| to.copy_from_slice(&bytes)),
                Work::Zero(at, bytes) => self.range(call, at, bytes).map(|to| to.fill(0)),
                Work::Copy(from, to, bytes) => match self.range(call, from, bytes).map(|b| b.to_vec()) {
                    Ok(copied) => self.range(call, to, bytes).map(|to| to.copy_from_slice(&copied)),
                    Err(e) => Err(e),
                },
                Work::Launch(l) => self.execute(call, &l),
            };
            if let Err(e) = done {
                let e = error(call, ILLEGAL_ADDRESS, e.text);
                self.sticky = Some(e.clone());
                return Err(e);
            }
        }
        Ok(())
    }
    fn execute(&mut self, call: &'static str, l: &Launch) -> DriverResult<()> {
        let unknown = || error(call, INVALID, "no such kernel");
        let f = self.functions.get(l.function.0 as usize).ok_or_else(unknown)?;
        // From an address to the end of its allocation.
        let bytes_at = |at: Address| {
            let gone = || error(call, ILLEGAL_ADDRESS, format!("{}: nothing lies at {at:#x}", f.name));
            let (base, bytes) = self.memory.range(..=at).next_back().ok_or_else(gone)?;
            bytes.get((at - base) as usize..).filter(|b| !b.is_empty()).map(<[u8]>::to_vec).ok_or_else(gone)
        };
        let (mut arguments, mut matrices) = (Vec::new(), Vec::new());
        for p in &l.parameters {
            arguments.push(match p {
                Parameter::Block(bytes) => match decode(bytes) {
                    Some((at, map)) => {
                        matrices.push(bytes_at(at)?);
                        Argument::TensorMap(TensorMap { argument: l.parameters.len() + matrices.len() - 1, ..map })
                    }
                    None => Argument::Bytes(bytes.clone()),
                },
                Parameter::Address(at) => Argument::Buffer(Buffer::inout(&format!("{at:#x}"), bytes_at(*at)?)),
                Parameter::Constant(at) => Argument::Buffer(Buffer::input(&format!("{at:#x}"), bytes_at(*at)?)),
            });
        }
        arguments.extend(matrices.into_iter().map(|m| Argument::Buffer(Buffer::input("matrix", m))));
        let launch = frit_simt::Launch {
            kernel: &f.name,
            text: &f.text,
            language: Language::Ptx,
            entry: Some("main"),
            workgroup: l.block,
            grid: l.grid,
            arguments,
            dynamic_shared_bytes: l.shared_bytes,
        };
        let outcome = frit_simt::run(&launch, &Options::default())
            .map_err(|e| error(call, ILLEGAL_ADDRESS, format!("{}: {e}", f.name)))?;
        let violations: Vec<String> = outcome.violations.iter().map(Violation::to_string).collect();
        {
            let mut s = self.device.lock();
            s.launches += 1;
            let c = s.checks.entry(f.name.clone()).or_default();
            c.name.clone_from(&f.name);
            c.launches += 1;
            c.instructions += outcome.counters.thread.iter().sum::<u64>();
            c.bytes += outcome.counters.global_read_bytes + outcome.counters.global_write_bytes;
            c.barriers += outcome.counters.barriers;
            c.violations.extend(violations.iter().cloned());
        }
        if let Some(first) = violations.first() {
            return Err(error(call, ILLEGAL_ADDRESS, format!("{}: {first}", f.name)));
        }
        let mut written: BTreeMap<Address, u8> = BTreeMap::new();
        for (p, bytes) in l.parameters.iter().zip(&outcome.buffers) {
            let Parameter::Address(at) = p else { continue };
            let before = bytes_at(*at)?;
            for (place, (new, _)) in (*at..).zip(bytes.iter().zip(&before)).filter(|(_, (new, old))| new != old) {
                if written.insert(place, *new).is_some_and(|other| other != *new) {
                    return Err(error(
                        call,
                        ILLEGAL_ADDRESS,
                        format!("{}: {place:#x} is written by two names", f.name),
                    ));
                }
            }
        }
        for (at, byte) in written {
            self.range(call, at, 1)?.fill(byte);
        }
        Ok(())
    }
    fn check_launch(&self, l: &Launch) -> DriverResult<()> {
        let refused = |text: String| Err(error("cuLaunchKernelEx", INVALID, text));
        let Some(f) = self.functions.get(l.function.0 as usize) else { return refused("no such kernel".into()) };
        let given: Vec<Option<usize>> = l
            .parameters
            .iter()
            .map(|p| match p {
                Parameter::Address(_) | Parameter::Constant(_) => None,
                Parameter::Block(b) => Some(b.len()),
            })
            .collect();
        if given != f.parameters {
            return refused(format!("{}: parameters {given:?}, declared {:?}", f.name, f.parameters));
        }
        if l.shared_bytes > f.shared_bytes {
            return refused(format!("{}: {} bytes of shared memory", f.name, l.shared_bytes));
        }
        if l.grid.contains(&0) || l.block.contains(&0) {
            return refused(format!("{}: a grid of {:?} blocks of {:?}", f.name, l.grid, l.block));
        }
        Ok(())
    }
}

impl Driver for InterpretedDriver {
    fn info(&self) -> &DeviceInfo {
        &self.device.info
    }
    fn free_bytes(&mut self) -> DriverResult<u64> {
        self.begin_call("cuMemGetInfo", false)?;
        Ok(self.device.memory_bytes.saturating_sub(self.device.lock().live_bytes))
    }
    fn alloc(&mut self, bytes: u64) -> DriverResult<Address> {
        self.begin_call("cuMemAlloc", false)?;
        let mut s = self.device.lock();
        if bytes == 0 || s.live_bytes + bytes > self.device.memory_bytes {
            let code = if bytes == 0 { INVALID } else { DriverError::OUT_OF_MEMORY };
            return Err(error("cuMemAlloc", code, format!("{bytes} bytes")));
        }
        s.live_bytes += bytes;
        let at = self.next;
        self.next += bytes.next_multiple_of(256) + (1 << 20);
        // what was there before is not zero
        self.memory.insert(at, vec![0xa5; bytes as usize]);
        Ok(at)
    }
    fn free(&mut self, address: Address) -> DriverResult<()> {
        self.begin_call("cuMemFree", false)?;
        match self.memory.remove(&address) {
            Some(m) => {
                self.device.lock().live_bytes -= m.len() as u64;
                Ok(())
            }
            None => Err(error("cuMemFree", INVALID, format!("nothing begins at {address:#x}"))),
        }
    }
    fn zero(&mut self, address: Address, bytes: u64) -> DriverResult<()> {
        self.begin_call("cuMemsetD8Async", false)?;
        self.range("cuMemsetD8Async", address, bytes)?;
        self.queue.push_back(Work::Zero(address, bytes));
        Ok(())
    }
    fn write(&mut self, address: Address, bytes: &[u8]) -> DriverResult<()> {
        self.begin_call("cuMemcpyHtoDAsync", false)?;
        self.range("cuMemcpyHtoDAsync", address, bytes.len() as u64)?;
        self.queue.push_back(Work::Write(address, bytes.to_vec()));
        Ok(())
    }
    fn copy(&mut self, from: Address, to: Address, bytes: u64) -> DriverResult<()> {
        self.begin_call("cuMemcpyDtoDAsync", false)?;
        self.range("cuMemcpyDtoDAsync", from, bytes)?;
        self.range("cuMemcpyDtoDAsync", to, bytes)?;
        self.queue.push_back(Work::Copy(from, to, bytes));
        Ok(())
    }
    fn read(&mut self, address: Address, to: &mut [u8]) -> DriverResult<()> {
        self.begin_call("cuMemcpyDtoHAsync", false)?;
        self.drain("cuMemcpyDtoHAsync")?;
        let from = self.range("cuMemcpyDtoHAsync", address, to.len() as u64)?;
        to.copy_from_slice(from);
        Ok(())
    }
    fn wait(&mut self) -> DriverResult<()> {
        self.begin_call("cuStreamSynchronize", false)?;
        self.drain("cuStreamSynchronize")
    }
    fn assemble(&mut self, ptx: &str) -> DriverResult<Vec<u8>> {
        self.begin_call("cuLinkAddData", false)?;
        if !ptx.contains(".visible .entry") {
            return Err(error("cuLinkAddData", 218, "no entry"));
        }
        self.device.lock().assembled += 1;
        Ok([CODE, ptx.as_bytes()].concat())
    }
    fn load(&mut self, code: &[u8], entry: &str, shared_bytes: u32) -> DriverResult<Function> {
        self.begin_call("cuModuleLoadData", false)?;
        let text = code.strip_prefix(CODE).and_then(|t| std::str::from_utf8(t).ok());
        let text = text.filter(|t| t.contains(&format!(".entry {entry}(")));
        let text = text.ok_or_else(|| error("cuModuleLoadData", 200, "no machine code of this driver"))?;
        let name = text.lines().next().unwrap_or_default().trim_start_matches("// ").to_owned();
        self.functions.push(Loaded { parameters: parameters(text), text: text.to_owned(), name, shared_bytes });
        Ok(Function(self.functions.len() as u64 - 1))
    }
    fn tensor_map(&mut self, at: Address, m: &Matrix) -> DriverResult<Vec<u8>> {
        self.begin_call("cuTensorMapEncodeTiled", false)?;
        if !m.columns.is_multiple_of(8) || m.rows == 0 || !(1..=256).contains(&m.tile_rows) || at % 16 != 0 {
            return Err(error("cuTensorMapEncodeTiled", INVALID, format!("{m:?} at {at:#x}")));
        }
        self.range("cuTensorMapEncodeTiled", at, 2 * m.columns * m.rows)?;
        let words = [MAP, at, m.columns, m.rows, u64::from(m.tile_rows)];
        let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.resize(MAP_BYTES as usize, 0);
        Ok(bytes)
    }
    fn launch(&mut self, launch: &Launch) -> DriverResult<()> {
        self.begin_call("cuLaunchKernelEx", true)?;
        self.check_launch(launch)?;
        match &mut self.recording {
            Some(recorded) => recorded.push(launch.clone()),
            None => self.queue.push_back(Work::Launch(launch.clone())),
        }
        Ok(())
    }
    fn begin(&mut self) -> DriverResult<()> {
        self.begin_call("cuStreamBeginCapture", false)?;
        self.recording = Some(Vec::new());
        Ok(())
    }
    fn end(&mut self) -> DriverResult<Graph> {
        let recorded = self.recording.take();
        self.begin_call("cuStreamEndCapture", true)?;
        let recorded = recorded.ok_or_else(|| error("cuStreamEndCapture", INVALID, "nothing is recorded"))?;
        let graph = Graph(self.graphs.last_key_value().map_or(0, |(g, _)| g.0 + 1));
        self.graphs.insert(graph, recorded);
        Ok(graph)
    }
    fn replay(&mut self, graph: Graph) -> DriverResult<()> {
        self.begin_call("cuGraphLaunch", false)?;
        let launches = self.graphs.get(&graph).ok_or_else(|| error("cuGraphLaunch", INVALID, "no such graph"))?;
        self.queue.extend(launches.iter().cloned().map(Work::Launch));
        self.device.lock().replays += 1;
        Ok(())
    }
    fn mark(&mut self, _is_second: bool) -> DriverResult<()> {
        self.begin_call("cuEventRecord", false)
    }
    fn between_marks(&mut self) -> DriverResult<Option<f64>> {
        self.begin_call("cuEventElapsedTime", false)?;
        Ok(None)
    }
    fn forget(&mut self, graph: Graph) -> DriverResult<()> {
        self.begin_call("cuGraphExecDestroy", false)?;
        match self.graphs.remove(&graph) {
            Some(_) => Ok(()),
            None => Err(error("cuGraphExecDestroy", INVALID, "no such graph")),
        }
    }
}

impl Drop for InterpretedDriver {
    fn drop(&mut self) {
        let held: usize = self.memory.values().map(Vec::len).sum();
        self.device.lock().live_bytes -= held as u64;
    }
}
