//! Which backend serves.

use crate::backend::Backend;
use crate::{Error, Result};

/// A choice of backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// An NVIDIA GPU when there is one, else another graphics card, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// Whatever adapter wgpu finds, software ones included.
    Wgpu,
    /// An NVIDIA GPU through its driver.
    Cuda,
}

impl std::str::FromStr for BackendChoice {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(BackendChoice::Auto),
            "cpu" => Ok(BackendChoice::Cpu),
            "wgpu" => Ok(BackendChoice::Wgpu),
            "cuda" => Ok(BackendChoice::Cuda),
            _ => Err(Error::NoBackend { backend: s.into(), reason: "the choices are auto, cpu, wgpu, cuda".into() }),
        }
    }
}

impl BackendChoice {
    /// Opens the backend.
    ///
    /// # Errors
    /// [`Error::NoBackend`] when this machine or this build has none of that kind.
    pub fn open(self) -> Result<Box<dyn Backend>> {
        match self {
            BackendChoice::Cpu => cpu(),
            BackendChoice::Wgpu => wgpu(false),
            BackendChoice::Cuda => cuda(),
            BackendChoice::Auto => match cuda().or_else(|_| wgpu(true)) {
                Ok(b) if b.is_hardware() => Ok(b),
                _ => cpu(),
            },
        }
    }
}

fn cpu() -> Result<Box<dyn Backend>> {
    Ok(Box::new(crate::backend::cpu::CpuBackend::new()))
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Box<dyn Backend>> {
    Ok(Box::new(crate::backend::cuda::CudaBackend::new()?))
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Box<dyn Backend>> {
    Err(Error::NoBackend {
        backend: "cuda".into(),
        reason: "this build has no CUDA backend; build it with `--features cuda`".into(),
    })
}

#[cfg(feature = "wgpu")]
fn wgpu(hardware: bool) -> Result<Box<dyn Backend>> {
    use crate::backend::wgpu::{Selection, WgpuBackend};
    let selection = if hardware { Selection::Hardware } else { Selection::Best };
    Ok(Box::new(WgpuBackend::new(&selection)?))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(_hardware: bool) -> Result<Box<dyn Backend>> {
    Err(Error::NoBackend {
        backend: "wgpu".into(),
        reason: "this build has no wgpu backend; build it with `--features wgpu`".into(),
    })
}
