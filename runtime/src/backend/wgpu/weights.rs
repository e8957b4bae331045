//! Weights on the device: one buffer or texture for each matrix in its device layout, one buffer for all side constants.

use super::super::layout::{Home, Layout, is_symbolic};
use super::super::packed::{self, NoTensors};
use super::super::{Extent, Progress};
use super::device::{Gpu, ROW_BYTES};
use crate::{Error, Result};
use frit_kernels::target::{Capabilities, Tier};
use frit_plan::{Placement, Plan, TensorSource, WeightDecl};
use wgpu::BufferUsages as Usage;

/// Bytes of one write.
const CHUNK_BYTES: usize = 8 << 20;
/// Bytes written before the device is made to take them, which bounds the memory that waits.
const FLUSH_BYTES: u64 = 64 << 20;

/// Where a matrix lies.
#[derive(Debug)]
enum Own {
    Buffer(wgpu::Buffer),
    Texels(wgpu::TextureView),
}

/// The buffers and textures of a plan's weights.
#[derive(Debug)]
pub(super) struct DeviceWeights {
    as_texels: bool,
    own: Vec<Option<Own>>,
    side: Option<wgpu::Buffer>,
}

impl DeviceWeights {
    /// Reads every weight of `plan` and uploads it as the kernels of `tier` read it.
    pub fn load(
        gpu: &Gpu,
        tier: Tier,
        plan: &Plan,
        layout: &Layout,
        source: &dyn TensorSource,
        extent: &Extent,
        progress: Progress<'_>,
    ) -> Result<DeviceWeights> {
        let [total, ..] = layout.bytes();
        let as_texels = Capabilities::webgpu(tier).has_texel_weights;
        let mut up = Upload { gpu, as_texels, progress, done: 0, total, waiting: 0 };
        let mut own = Vec::new();
        for (w, bytes) in plan.weights.iter().zip(&layout.own_bytes) {
            own.push(match w.placement {
                Placement::Own => Some(up.own(plan, w, *bytes, source, extent)?),
                Placement::Side => None,
            });
        }
        let side = match layout.side_elems {
            0 => None,
            n => {
                let buffer = side_buffer(gpu, n)?;
                up.side(plan, layout, &buffer, 0, source, extent)?;
                Some(buffer)
            }
        };
        up.flush()?;
        Ok(DeviceWeights { as_texels, own, side })
    }
    /// Makes again what depends on the extent; everything else stays.
    pub fn resize(&mut self, gpu: &Gpu, plan: &Plan, layout: &Layout, extent: &Extent) -> Result<()> {
        if !plan.weights.iter().any(is_symbolic) {
            return Ok(());
        }
        let mut silent = |_, _| {};
        let mut up = Upload { gpu, as_texels: self.as_texels, progress: &mut silent, done: 0, total: 0, waiting: 0 };
        for ((w, bytes), slot) in plan.weights.iter().zip(&layout.own_bytes).zip(&mut self.own) {
            if w.placement == Placement::Own && is_symbolic(w) {
                *slot = None;
                *slot = Some(up.own(plan, w, *bytes, &NoTensors, extent)?);
            }
        }
        if layout.side_elems > layout.side_fixed_elems {
            let buffer = side_buffer(gpu, layout.side_elems)?;
            if let Some(old) = self.side.take().filter(|_| layout.side_fixed_elems > 0) {
                let mut encoder = gpu.encoder();
                encoder.copy_buffer_to_buffer(&old, 0, &buffer, 0, layout.side_fixed_elems * 4);
                gpu.submit(Some(encoder));
            }
            up.side(plan, layout, &buffer, layout.side_fixed_elems, &NoTensors, extent)?;
            self.side = Some(buffer);
        }
        up.flush()
    }
    /// The buffer of a weight of its own, where weights lie in buffers.
    pub fn own(&self, weight: u32) -> Option<&wgpu::Buffer> {
        match self.own.get(weight as usize)? {
            Some(Own::Buffer(buffer)) => Some(buffer),
            _ => None,
        }
    }
    /// The texture of a weight of its own, where weights lie in textures.
    pub fn texels(&self, home: Home) -> Result<&wgpu::TextureView> {
        match home {
            Home::Own(w) => match self.own.get(w as usize) {
                Some(Some(Own::Texels(view))) => Some(view),
                _ => None,
            },
            _ => None,
        }
        .ok_or_else(|| Error::Plan(format!("{home:?} is no texture")))
    }
    /// The buffer of side constants, if there are any.
    pub fn side(&self) -> Option<&wgpu::Buffer> {
        self.side.as_ref()
    }
}

fn side_buffer(gpu: &Gpu, elems: u64) -> Result<wgpu::Buffer> {
    gpu.buffer("side", elems * 4, Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC)
}

struct Upload<'a> {
    gpu: &'a Gpu,
    as_texels: bool,
    progress: Progress<'a>,
    done: u64,
    total: u64,
    waiting: u64,
}

impl Upload<'_> {
    fn own(
        &mut self,
        plan: &Plan,
        w: &WeightDecl,
        bytes: u64,
        source: &dyn TensorSource,
        extent: &Extent,
    ) -> Result<Own> {
        if self.as_texels {
            let texture = self.gpu.texels(&w.name, bytes)?;
            let mut all = packed::own(plan, w, source, extent)?;
            all.resize(all.len().next_multiple_of(ROW_BYTES as usize), 0);
            let mut row = 0;
            for chunk in all.chunks(CHUNK_BYTES) {
                self.gpu.write_rows(&texture, row, chunk);
                row += (chunk.len() as u64 / ROW_BYTES) as u32;
                self.written(chunk.len() as u64)?;
            }
            return Ok(Own::Texels(texture.create_view(&wgpu::TextureViewDescriptor::default())));
        }
        let buffer = self.gpu.buffer(&w.name, bytes, Usage::STORAGE | Usage::COPY_DST)?;
        self.put(&buffer, 0, &packed::own(plan, w, source, extent)?)?;
        Ok(Own::Buffer(buffer))
    }
    /// Uploads the side constants from element `from` on.
    fn side(
        &mut self,
        plan: &Plan,
        layout: &Layout,
        buffer: &wgpu::Buffer,
        from: u64,
        source: &dyn TensorSource,
        extent: &Extent,
    ) -> Result<()> {
        let all = packed::side(plan, layout, from, source, extent)?;
        self.put(buffer, from * 4, bytemuck::cast_slice(&all))
    }
    fn put(&mut self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut at = offset;
        for chunk in bytes.chunks(CHUNK_BYTES) {
            self.gpu.write(buffer, at, chunk);
            at += chunk.len() as u64;
            self.written(chunk.len() as u64)?;
        }
        Ok(())
    }
    fn written(&mut self, bytes: u64) -> Result<()> {
        self.waiting += bytes;
        if self.waiting >= FLUSH_BYTES {
            self.flush()?;
        }
        self.done = (self.done + bytes).min(self.total);
        (self.progress)(self.done, self.total);
        Ok(())
    }
    fn flush(&mut self) -> Result<()> {
        self.waiting = 0;
        let index = self.gpu.submit(None);
        self.gpu.wait(index)
    }
}
