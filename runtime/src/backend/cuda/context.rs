//! A driver with what the backend adds to it: counts, typed errors, and the memory of a failure that cannot be undone.

use super::cache::Cache;
use super::driver::{Address, DeviceInfo, Driver, DriverError, DriverResult, Function, Graph, Launch};
use crate::backend::Counters;
use crate::{Error, Result};
use frit_kernels::target::Architecture;
use frit_plan::Matrix;

/// How launches reach the device; every step is faster than the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Launching {
    /// One by one, each after the end of the one before: for debuggers and sanitizers.
    Single,
    /// Steps of decoders as graphs.
    Graphs,
    /// As graphs, a launch beginning while the one before still runs.
    #[default]
    Overlapping,
}

/// A driver and what it did.
pub(super) struct Context {
    driver: Box<dyn Driver>,
    cache: Cache,
    /// What the caller allows.
    pub limit_bytes: Option<u64>,
    /// What was done.
    pub counters: Counters,
    /// How launches reach the device.
    pub launching: Launching,
    /// The newest instruction set whose kernels are run.
    pub newest: Architecture,
    /// Whether runs are timed by the device's clock.
    pub is_timed: bool,
    poisoned: Option<String>,
}

impl Context {
    pub fn new(driver: Box<dyn Driver>, cache: Cache, limit_bytes: Option<u64>) -> Context {
        let (launching, newest) = (Launching::default(), Architecture::Sm90a);
        let counters = Counters::default();
        Context { driver, cache, limit_bytes, counters, launching, newest, is_timed: false, poisoned: None }
    }
    pub fn info(&self) -> &DeviceInfo {
        self.driver.info()
    }
    /// Fails if an earlier call failed for good.
    pub fn check(&self) -> Result<()> {
        match &self.poisoned {
            Some(cause) => Err(Error::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }
    fn call<T>(&mut self, f: impl FnOnce(&mut dyn Driver) -> DriverResult<T>) -> Result<T> {
        self.check()?;
        f(&mut *self.driver).map_err(|e| self.failed(&e))
    }
    fn failed(&mut self, e: &DriverError) -> Error {
        if e.is_sticky() {
            let cause = self.poisoned.get_or_insert_with(|| e.to_string());
            return Error::Poisoned { cause: cause.clone() };
        }
        Error::Device(e.to_string())
    }
    pub fn free_bytes(&mut self) -> Result<u64> {
        self.call(|d| d.free_bytes())
    }
    pub fn alloc(&mut self, name: &str, bytes: u64) -> Result<Address> {
        self.check()?;
        self.counters.buffers += 1;
        match self.driver.alloc(bytes.max(1)) {
            Err(e) if e.code == DriverError::OUT_OF_MEMORY => {
                let limit = self.driver.free_bytes().unwrap_or(0);
                Err(Error::Limit { what: format!("bytes of device memory for `{name}`"), wanted: bytes, limit })
            }
            Err(e) => Err(self.failed(&e)),
            Ok(at) => Ok(at),
        }
    }
    pub fn free(&mut self, at: Address) -> Result<()> {
        self.call(|d| d.free(at))
    }
    pub fn zero(&mut self, at: Address, bytes: u64) -> Result<()> {
        self.call(|d| d.zero(at, bytes))
    }
    pub fn write(&mut self, at: Address, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.counters.writes += 1;
        self.call(|d| d.write(at, bytes))
    }
    pub fn copy(&mut self, from: Address, to: Address, bytes: u64) -> Result<()> {
        match bytes {
            0 => Ok(()),
            n => self.call(|d| d.copy(from, to, n)),
        }
    }
    pub fn read(&mut self, at: Address, to: &mut [u8]) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        self.counters.read_bytes += to.len() as u64;
        self.call(|d| d.read(at, to))
    }
    pub fn wait(&mut self) -> Result<()> {
        self.call(|d| d.wait())
    }
    /// The kernel of a text, from the cache or from the driver's assembler.
    pub fn kernel(&mut self, name: &str, ptx: &str, shared_bytes: u32) -> Result<Function> {
        self.check()?;
        if shared_bytes > self.info().shared_bytes {
            let reason =
                format!("it needs {shared_bytes} bytes of shared memory, {} are there", self.info().shared_bytes);
            return Err(Error::Kernel { backend: "cuda", kernel: name.into(), reason });
        }
        let path = self.cache.path(ptx, self.driver.info());
        if let Some(code) = path.as_deref().and_then(Cache::read)
            && let Ok(f) = self.driver.load(&code, "main", shared_bytes)
        {
            return Ok(f);
        }
        self.counters.pipelines += 1;
        let made = self.driver.assemble(ptx).and_then(|code| {
            let f = self.driver.load(&code, "main", shared_bytes)?;
            Ok((f, code))
        });
        match made {
            Ok((f, code)) => {
                // a text that the loader assembles is no machine code
                if let Some(path) = path.filter(|_| !code.starts_with(ptx.as_bytes())) {
                    Cache::write(&path, &code);
                }
                Ok(f)
            }
            Err(e) if e.is_sticky() => Err(self.failed(&e)),
            Err(e) => Err(Error::Kernel { backend: "cuda", kernel: name.into(), reason: e.to_string() }),
        }
    }
    pub fn tensor_map(&mut self, at: Address, matrix: &Matrix) -> Result<Vec<u8>> {
        self.call(|d| d.tensor_map(at, matrix))
    }
    pub fn launch(&mut self, l: &Launch) -> Result<()> {
        self.call(|d| d.launch(l))
    }
    /// Records launches as one graph.
    pub fn record(&mut self, launches: &[Launch]) -> Result<Graph> {
        self.counters.bind_groups += 1;
        self.call(|d| {
            d.begin()?;
            let all = launches.iter().try_for_each(|l| d.launch(l));
            // a launch that fails spoils the recording, whose end then says only that
            match (all, d.end()) {
                (Ok(()), ended) => ended,
                (Err(e), Ok(graph)) => d.forget(graph).and(Err(e)),
                (Err(e), Err(_)) => Err(e),
            }
        })
    }
    pub fn replay(&mut self, g: Graph) -> Result<()> {
        self.call(|d| d.replay(g))
    }
    /// What launches take on the device begins or ends here, where it is asked for.
    pub fn mark(&mut self, is_second: bool) -> Result<()> {
        if self.is_timed { self.call(|d| d.mark(is_second)) } else { Ok(()) }
    }
    /// Seconds between the marks of the last run, which is done.
    pub fn between_marks(&mut self) -> Result<Option<f64>> {
        if self.is_timed { self.call(|d| d.between_marks()) } else { Ok(None) }
    }
    pub fn forget(&mut self, g: Graph) -> Result<()> {
        self.call(|d| d.forget(g))
    }
}
