//! CUDA's driver, loaded when the first GPU is asked for. Nothing of CUDA is needed to build.

use super::driver::{Address, DeviceInfo, Driver, DriverError, DriverResult, Function, Graph, Launch, Parameter};
use crate::{Error, Result};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUjit_option as Jit, CUresult};
use frit_kernels::ir::TILE_COLUMNS;
use frit_plan::Matrix;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;

/// The oldest driver that takes everything used here: CUDA 12.0.
const OLDEST_DRIVER: i32 = 12000;
/// The oldest driver whose clock is read: CUDA 12.8.
const CLOCK_DRIVER: i32 = 12080;
/// The oldest GPU that kernels are written for.
const OLDEST_CAPABILITY: (u32, u32) = (8, 0);
/// Where the kernel's driver tells its version.
const RELEASE: &str = "/sys/module/nvidia/version";
/// Bytes of the assembler's log that are shown.
const LOG_BYTES: usize = 8192;

/// Bytes of a write that the driver takes into memory of its own at once.
const STAGED_BYTES: usize = 64 << 10;

/// Calls a function of the driver and turns its code into a result.
macro_rules! call {
    ($f:ident($($a:expr),* $(,)?)) => {
        // SAFETY: the library is there, `open` made sure. Handles given come from earlier calls and are dropped with
        // `Native` only; pointers point to locals that live across the call; kernels get the parameters that their text
        // declares, since `Launch` is made from the same plan.
        check(stringify!($f), unsafe { sys::$f($($a),*) })
    };
}

fn check(call: &'static str, r: CUresult) -> DriverResult<()> {
    if r == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let told = |f: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text: *const c_char = ptr::null();
        // SAFETY: the driver writes a pointer to a string of its own, which is never freed, or leaves it null.
        unsafe {
            let _ = f(r, &mut text);
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        }
    };
    let (name, text) = (told(sys::cuGetErrorName), told(sys::cuGetErrorString));
    Err(DriverError { call, code: r as u32, name, text })
}

/// Where the driver's assembler writes what it has to say.
struct Log {
    text: Vec<u8>,
    options: Vec<Jit>,
    values: Vec<*mut c_void>,
}

impl Log {
    fn new() -> Log {
        let mut text = vec![0u8; LOG_BYTES];
        let options = vec![Jit::CU_JIT_ERROR_LOG_BUFFER, Jit::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let values = vec![text.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(LOG_BYTES)];
        Log { text, options, values }
    }
    /// The assembler's target is this one, not the device's.
    fn for_target(mut self, target: Option<sys::CUjit_target>) -> Log {
        if let Some(t) = target {
            self.options.push(Jit::CU_JIT_TARGET);
            self.values.push(ptr::without_provenance_mut(t as usize));
        }
        self
    }
    fn add_to(&self, mut e: DriverError) -> DriverError {
        let said = self.text.split(|c| *c == 0).next().unwrap_or_default();
        e.text = format!("{}\n{}", e.text, String::from_utf8_lossy(said)).trim().to_owned();
        e
    }
}

/// The context is the calling thread's; then the one before is again, the host's own perhaps.
struct Current;

impl Drop for Current {
    fn drop(&mut self) {
        let mut popped = ptr::null_mut();
        let _ = call!(cuCtxPopCurrent_v2(&mut popped));
    }
}

/// The first GPU, its primary context, one stream.
pub(super) struct Native {
    info: DeviceInfo,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    memory: BTreeSet<Address>,
    modules: Vec<(sys::CUmodule, sys::CUfunction)>,
    graphs: BTreeMap<Graph, sys::CUgraphExec>,
    graphs_made: u64,
    marks: [sys::CUevent; 2],
}

// SAFETY: handles of the driver may be used from any thread in which the context is current, which every method sees to.
unsafe impl Send for Native {}

impl Native {
    /// Opens the first GPU.
    pub fn open() -> Result<Native> {
        let none = |reason: String| Error::NoBackend { backend: "cuda".into(), reason };
        // SAFETY: loading NVIDIA's driver library runs its initialisers, as any program that uses a GPU does.
        if !unsafe { sys::is_culib_present() } {
            return Err(none("this machine has no NVIDIA driver".into()));
        }
        let started = || -> DriverResult<(i32, i32)> {
            let (mut driver, mut devices) = (0, 0);
            call!(cuInit(0))?;
            call!(cuDriverGetVersion(&mut driver))?;
            call!(cuDeviceGetCount(&mut devices))?;
            Ok((driver, devices))
        };
        let (driver, devices) = started().map_err(|e| none(e.to_string()))?;
        if devices < 1 {
            return Err(none("the NVIDIA driver finds no GPU".into()));
        }
        if driver < OLDEST_DRIVER {
            let of = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
            return Err(none(format!(
                "the driver is for CUDA {}, at least {} is needed",
                of(driver),
                of(OLDEST_DRIVER)
            )));
        }
        let opened = Native::first(driver).map_err(|e| none(e.to_string()))?;
        if opened.info.capability < OLDEST_CAPABILITY {
            let (major, minor) = opened.info.capability;
            return Err(none(format!("{} is sm_{major}{minor}, at least sm_80 is needed", opened.info.name)));
        }
        Ok(opened)
    }
    fn first(driver: i32) -> DriverResult<Native> {
        let mut device = 0;
        call!(cuDeviceGet(&mut device, 0))?;
        let mut name = [0 as c_char; 128];
        call!(cuDeviceGetName(name.as_mut_ptr(), name.len() as i32 - 1, device))?;
        let name: Vec<u8> = name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
        let fact = |a: Attribute| -> DriverResult<u32> {
            let mut v = 0;
            call!(cuDeviceGetAttribute(&mut v, a, device))?;
            Ok(v.unsigned_abs())
        };
        let info = DeviceInfo {
            name: String::from_utf8_lossy(&name).into_owned(),
            capability: (
                fact(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                fact(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            driver,
            release: std::fs::read_to_string(RELEASE).map(|v| v.trim().to_owned()).unwrap_or_default(),
            shared_bytes: fact(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        };
        let mut context = ptr::null_mut();
        call!(cuDevicePrimaryCtxRetain(&mut context, device))?;
        let mut n = Native {
            info,
            device,
            context,
            stream: ptr::null_mut(),
            memory: BTreeSet::new(),
            modules: Vec::new(),
            graphs: BTreeMap::new(),
            graphs_made: 0,
            marks: [ptr::null_mut(); 2],
        };
        let current = n.current()?;
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        call!(cuStreamCreate(&mut n.stream, flags))?;
        drop(current);
        Ok(n)
    }
    /// Makes the context that of the calling thread until the guard is dropped.
    fn current(&self) -> DriverResult<Current> {
        call!(cuCtxPushCurrent_v2(self.context))?;
        Ok(Current)
    }
    /// Machine code of a text that ends in a zero.
    fn link(&mut self, text: &[u8], target: Option<sys::CUjit_target>) -> DriverResult<Vec<u8>> {
        let mut log = Log::new().for_target(target);
        let mut link = ptr::null_mut();
        let count = log.options.len() as u32;
        call!(cuLinkCreate_v2(count, log.options.as_mut_ptr(), log.values.as_mut_ptr(), &mut link))?;
        let (mut code, mut len) = (ptr::null_mut(), 0);
        let made = call!(cuLinkAddData_v2(
            link,
            sys::CUjitInputType::CU_JIT_INPUT_PTX,
            text.as_ptr().cast_mut().cast(),
            text.len(),
            c"kernel".as_ptr(),
            0,
            ptr::null_mut(),
            ptr::null_mut()
        ))
        .and_then(|()| call!(cuLinkComplete(link, &mut code, &mut len)));
        let bytes = match made {
            // SAFETY: the driver made `len` bytes at `code`, which live until the link is destroyed below.
            Ok(()) => Ok(unsafe { std::slice::from_raw_parts(code.cast::<u8>(), len) }.to_vec()),
            Err(e) => Err(log.add_to(e)),
        };
        call!(cuLinkDestroy(link)).and(bytes)
    }
    /// Gives everything back that can be; the first failure is told.
    fn give_back(&mut self) -> DriverResult<()> {
        let _current = self.current()?;
        let mut done = if self.stream.is_null() { Ok(()) } else { call!(cuStreamSynchronize(self.stream)) };
        for g in std::mem::take(&mut self.graphs).into_values() {
            done = done.and(call!(cuGraphExecDestroy(g)));
        }
        for (m, _) in std::mem::take(&mut self.modules) {
            done = done.and(call!(cuModuleUnload(m)));
        }
        for a in std::mem::take(&mut self.memory) {
            done = done.and(call!(cuMemFree_v2(a)));
        }
        for e in std::mem::replace(&mut self.marks, [ptr::null_mut(); 2]).into_iter().filter(|e| !e.is_null()) {
            done = done.and(call!(cuEventDestroy_v2(e)));
        }
        match std::mem::replace(&mut self.stream, ptr::null_mut()) {
            s if s.is_null() => done,
            s => done.and(call!(cuStreamDestroy_v2(s))),
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // A context that failed gives nothing back; the process's end does.
        let _ = self.give_back();
        let _ = call!(cuDevicePrimaryCtxRelease_v2(self.device));
    }
}

impl Driver for Native {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn free_bytes(&mut self) -> DriverResult<u64> {
        let _current = self.current()?;
        let (mut free, mut total) = (0, 0);
        call!(cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok(free as u64)
    }
    fn alloc(&mut self, bytes: u64) -> DriverResult<Address> {
        let _current = self.current()?;
        let mut at = 0;
        call!(cuMemAlloc_v2(&mut at, bytes as usize))?;
        self.memory.insert(at);
        Ok(at)
    }
    fn free(&mut self, address: Address) -> DriverResult<()> {
        let _current = self.current()?;
        self.memory.remove(&address);
        call!(cuMemFree_v2(address))
    }
    fn zero(&mut self, address: Address, bytes: u64) -> DriverResult<()> {
        let _current = self.current()?;
        call!(cuMemsetD8Async(address, 0, bytes as usize, self.stream))
    }
    fn write(&mut self, address: Address, bytes: &[u8]) -> DriverResult<()> {
        let _current = self.current()?;
        // of memory that is not pinned the driver has copied so little when it comes back; more may still be on its way
        let copied = call!(cuMemcpyHtoDAsync_v2(address, bytes.as_ptr().cast(), bytes.len(), self.stream));
        if bytes.len() <= STAGED_BYTES {
            return copied;
        }
        call!(cuStreamSynchronize(self.stream)).and(copied)
    }
    fn copy(&mut self, from: Address, to: Address, bytes: u64) -> DriverResult<()> {
        let _current = self.current()?;
        call!(cuMemcpyDtoDAsync_v2(to, from, bytes as usize, self.stream))
    }
    fn read(&mut self, address: Address, to: &mut [u8]) -> DriverResult<()> {
        let _current = self.current()?;
        let copied = call!(cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), address, to.len(), self.stream));
        call!(cuStreamSynchronize(self.stream))?;
        copied
    }
    fn wait(&mut self) -> DriverResult<()> {
        let _current = self.current()?;
        call!(cuStreamSynchronize(self.stream))
    }
    fn assemble(&mut self, ptx: &str) -> DriverResult<Vec<u8>> {
        let _current = self.current()?;
        let text = [ptx.as_bytes(), &[0]].concat();
        // unless told so, the target is the device's without what only it has
        let of_its_own = ptx.lines().any(|l| l.trim().starts_with(".target sm_90a"));
        match self.link(&text, of_its_own.then_some(sys::CUjit_target::CU_TARGET_COMPUTE_90A)) {
            // a driver that does not know the target leaves the text to the loader, whose log tells of a text that is wrong
            Err(e) if !e.is_sticky() && of_its_own => Ok(text),
            made => made,
        }
    }
    fn load(&mut self, code: &[u8], entry: &str, shared_bytes: u32) -> DriverResult<Function> {
        let _current = self.current()?;
        let entry = CString::new(entry).unwrap_or_default();
        let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
        let mut log = Log::new();
        let loaded = call!(cuModuleLoadDataEx(
            &mut module,
            code.as_ptr().cast(),
            log.options.len() as u32,
            log.options.as_mut_ptr(),
            log.values.as_mut_ptr()
        ));
        loaded.map_err(|e| log.add_to(e))?;
        let found = call!(cuModuleGetFunction(&mut function, module, entry.as_ptr()));
        self.modules.push((module, function));
        found?;
        if shared_bytes > 0 {
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            call!(cuFuncSetAttribute(function, most, shared_bytes as i32))?;
        }
        Ok(Function(self.modules.len() as u64 - 1))
    }
    fn tensor_map(&mut self, at: Address, m: &Matrix) -> DriverResult<Vec<u8>> {
        let _current = self.current()?;
        // The driver wants the map itself aligned; launches copy it.
        #[repr(C, align(128))]
        struct Aligned(sys::CUtensorMap);
        let mut map = Aligned(sys::CUtensorMap { opaque: [0; 16] });
        let extents = [m.columns, m.rows];
        let row_bytes = [2 * m.columns];
        let tile = [TILE_COLUMNS, m.tile_rows];
        call!(cuTensorMapEncodeTiled(
            &mut map.0,
            // The bits of both 16-bit formats are brought alike; so are zeros beyond the edges.
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
            2,
            ptr::without_provenance_mut(at as usize),
            extents.as_ptr(),
            row_bytes.as_ptr(),
            tile.as_ptr(),
            [1, 1].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ))?;
        Ok(map.0.opaque.iter().flat_map(|w| w.to_ne_bytes()).collect())
    }
    fn launch(&mut self, l: &Launch) -> DriverResult<()> {
        let _current = self.current()?;
        let Some((_, function)) = self.modules.get(l.function.0 as usize) else {
            let (name, text) = ("CUDA_ERROR_INVALID_HANDLE".to_owned(), "no such kernel".to_owned());
            return Err(DriverError { call: "cuLaunchKernelEx", code: 400, name, text });
        };
        let address = |p: &Parameter| match p {
            Parameter::Address(a) | Parameter::Constant(a) => ptr::from_ref(a).cast_mut().cast::<c_void>(),
            Parameter::Block(b) => b.as_ptr().cast_mut().cast::<c_void>(),
        };
        let mut parameters: Vec<*mut c_void> = l.parameters.iter().map(address).collect();
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: l.grid[0],
            gridDimY: l.grid[1],
            gridDimZ: l.grid[2],
            blockDimX: l.block[0],
            blockDimY: l.block[1],
            blockDimZ: l.block[2],
            sharedMemBytes: l.shared_bytes,
            hStream: self.stream,
            attrs: &mut overlap,
            numAttrs: u32::from(l.overlaps),
        };
        call!(cuLaunchKernelEx(&config, *function, parameters.as_mut_ptr(), ptr::null_mut()))
    }
    fn begin(&mut self) -> DriverResult<()> {
        let _current = self.current()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        call!(cuStreamBeginCapture_v2(self.stream, mode))
    }
    fn end(&mut self) -> DriverResult<Graph> {
        let _current = self.current()?;
        let (mut recorded, mut ready) = (ptr::null_mut(), ptr::null_mut());
        call!(cuStreamEndCapture(self.stream, &mut recorded))?;
        let made = call!(cuGraphInstantiateWithFlags(&mut ready, recorded, 0));
        let left = call!(cuGraphDestroy(recorded));
        made?;
        if let Err(e) = left {
            let _ = call!(cuGraphExecDestroy(ready));
            return Err(e);
        }
        let graph = Graph(self.graphs_made);
        self.graphs_made += 1;
        self.graphs.insert(graph, ready);
        Ok(graph)
    }
    fn replay(&mut self, graph: Graph) -> DriverResult<()> {
        let _current = self.current()?;
        match self.graphs.get(&graph) {
            Some(g) => call!(cuGraphLaunch(*g, self.stream)),
            None => Ok(()),
        }
    }
    fn mark(&mut self, is_second: bool) -> DriverResult<()> {
        let _current = self.current()?;
        let [first, second] = &mut self.marks;
        let mark = if is_second { second } else { first };
        if mark.is_null() {
            call!(cuEventCreate(mark, sys::CUevent_flags_enum::CU_EVENT_DEFAULT as u32))?;
        }
        call!(cuEventRecord(*mark, self.stream))
    }
    fn between_marks(&mut self) -> DriverResult<Option<f64>> {
        let _current = self.current()?;
        let [first, second] = self.marks;
        if first.is_null() || second.is_null() || self.info.driver < CLOCK_DRIVER {
            return Ok(None);
        }
        let mut milliseconds = 0f32;
        call!(cuEventElapsedTime_v2(&mut milliseconds, first, second))?;
        Ok(Some(f64::from(milliseconds) / 1e3))
    }
    fn forget(&mut self, graph: Graph) -> DriverResult<()> {
        let _current = self.current()?;
        match self.graphs.remove(&graph) {
            // the driver keeps what still runs until it is done
            Some(g) => call!(cuGraphExecDestroy(g)),
            None => Ok(()),
        }
    }
}
