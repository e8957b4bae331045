//! Outputs on their way back: one persistent staging buffer.

use super::device::Gpu;
use crate::{Error, Result};
use wgpu::BufferUsages as Usage;

/// Staging buffers are at once made for all outputs of a program when these take no more bytes than this.
const GENEROUS_BYTES: u64 = 16 << 20;

/// The staging buffer; it grows and never shrinks.
#[derive(Debug, Default)]
pub(super) struct Staging {
    buffer: Option<wgpu::Buffer>,
}

impl Staging {
    /// A buffer of at least `bytes`; `largest` is what the program's outputs take at the extent.
    pub fn reserve(&mut self, gpu: &Gpu, bytes: u64, largest: u64) -> Result<&wgpu::Buffer> {
        if self.buffer.as_ref().is_none_or(|b| b.size() < bytes) {
            self.buffer = None;
            let ahead = if largest <= GENEROUS_BYTES { largest } else { 0 };
            let size = bytes.max(ahead).max(1024).next_power_of_two().min(gpu.limits.max_buffer_size.max(bytes));
            self.buffer = Some(gpu.buffer("outputs", size, Usage::MAP_READ | Usage::COPY_DST)?);
        }
        self.buffer.as_ref().ok_or_else(|| Error::Device("there is no staging buffer".into()))
    }
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.buffer.as_ref().map_or(0, wgpu::Buffer::size)
    }
}
