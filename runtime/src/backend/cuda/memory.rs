//! Device memory of a bound plan: counted before the first byte is reserved, reserved before the first token.

use super::super::Extent;
use super::super::bindings::SIZES_BYTES;
use super::super::layout::{Home, Layout, is_symbolic};
use super::super::packed::{self, NoTensors};
use super::context::Context;
use super::driver::Address;
use crate::backend::Progress;
use crate::{Error, Result};
use frit_plan::{Placement, Plan, TensorSource, WeightDecl, sizes};

/// Steps whose tokens the log holds; a power of two.
pub(super) const LOG_LINES: u64 = 32;
/// Left free for the driver: code, stack, graphs.
const RESERVE_BYTES: u64 = 64 << 20;
/// Bytes of one write of weights.
const CHUNK_BYTES: usize = 64 << 20;

/// Every buffer of a plan.
#[derive(Debug, Default)]
pub(super) struct Memory {
    own: Vec<Option<Address>>,
    side: Option<Address>,
    arena: Option<Address>,
    ints: Option<Address>,
    kv: Vec<Option<Address>>,
    /// The table of sizes that kernels read.
    pub sizes: Address,
    /// Tokens of the last steps, [`LOG_LINES`] lines of [`Memory::log_rows`].
    pub log: Address,
    /// Sequences of a line of the log.
    pub log_rows: u64,
}

/// What the driver takes for so many bytes, or a little more: whole pages of 2 MiB from 1 MiB on, else a multiple of 512.
fn taken(bytes: u64) -> u64 {
    let step = if bytes >= 1 << 20 { 2 << 20 } else { 512 };
    bytes.max(1).checked_next_multiple_of(step).unwrap_or(u64::MAX)
}

/// Bytes that the driver takes for everything that `layout` asks for, the table of sizes and the log included.
fn wanted_bytes(plan: &Plan, layout: &Layout, extent: &Extent) -> u64 {
    let log = log_rows(plan, extent).saturating_mul(LOG_LINES * 4);
    let own =
        plan.weights.iter().zip(&layout.own_bytes).filter(|(w, _)| w.placement == Placement::Own).map(|(_, b)| *b);
    let kv = (0..plan.kv_slots.len()).map(|i| layout.kv_elems(i));
    let shared = [layout.side_elems, layout.arena_elems, layout.ints_elems].into_iter().chain(kv);
    let shared = shared.filter(|n| *n > 0).map(|n| n.saturating_mul(4));
    own.chain(shared).chain([SIZES_BYTES, log]).map(taken).fold(0, u64::saturating_add)
}

/// Whether nothing of the small weights depends on sizes, so that they stay where they are.
fn side_stays(old: &Layout, new: &Layout) -> bool {
    [old, new].iter().all(|l| l.side_elems == l.side_fixed_elems)
}

fn log_rows(plan: &Plan, extent: &Extent) -> u64 {
    plan.size_index(sizes::BATCH).and_then(|i| extent.0.get(i).copied()).unwrap_or(1).max(1)
}

fn within(limit: Option<u64>, free: u64, held: u64, wanted: u64) -> Result<()> {
    let limit = limit.unwrap_or(u64::MAX).min(free.saturating_add(held).saturating_sub(RESERVE_BYTES));
    if wanted > limit {
        return Err(Error::Limit { what: "bytes of device memory".into(), wanted, limit });
    }
    Ok(())
}

/// Kernels compute addresses in elements of 32 bits, the sign among them.
const MOST_ELEMENTS: u64 = (1 << 31) - 1;

/// Fails where a buffer that kernels share would be longer than they can address.
fn addressable(plan: &Plan, layout: &Layout) -> Result<()> {
    let slots = plan.kv_slots.iter().enumerate().map(|(i, s)| (s.name.as_str(), layout.kv_elems(i)));
    let shared = [("side", layout.side_elems), ("arena", layout.arena_elems), ("ints", layout.ints_elems)];
    match slots.chain(shared).find(|(_, n)| *n > MOST_ELEMENTS) {
        Some((name, wanted)) => {
            Err(Error::Limit { what: format!("elements of the buffer `{name}`"), wanted, limit: MOST_ELEMENTS })
        }
        None => Ok(()),
    }
}

impl Memory {
    /// Reserves everything and uploads the weights.
    pub fn load(
        gpu: &mut Context,
        plan: &Plan,
        layout: &Layout,
        source: &dyn TensorSource,
        extent: &Extent,
        progress: Progress<'_>,
    ) -> Result<Memory> {
        addressable(plan, layout)?;
        within(gpu.limit_bytes, gpu.free_bytes()?, 0, wanted_bytes(plan, layout, extent))?;
        let mut m = Memory { sizes: gpu.alloc("sizes", SIZES_BYTES)?, ..Memory::default() };
        for (w, bytes) in plan.weights.iter().zip(&layout.own_bytes) {
            let home = (w.placement == Placement::Own).then(|| gpu.alloc(&w.name, *bytes)).transpose()?;
            m.own.push(home);
        }
        m.reserve(gpu, plan, layout, extent)?;
        let [total, ..] = layout.bytes();
        let mut done = 0;
        let mut put = |gpu: &mut Context, at: Address, bytes: &[u8]| -> Result<()> {
            for (i, chunk) in bytes.chunks(CHUNK_BYTES).enumerate() {
                gpu.write(at + (i * CHUNK_BYTES) as u64, chunk)?;
                done += chunk.len() as u64;
                progress(done.min(total), total);
            }
            Ok(())
        };
        for (w, at) in plan.weights.iter().zip(&m.own) {
            if let Some(at) = at {
                put(gpu, *at, &packed::own(plan, w, source, extent)?)?;
            }
        }
        if let Some(at) = m.side {
            put(gpu, at, bytemuck::cast_slice(&packed::side(plan, layout, 0, source, extent)?))?;
        }
        Ok(m)
    }
    /// Whether [`Memory::resize`] will find the room; nothing is changed yet.
    pub fn check(
        gpu: &mut Context,
        plan: &Plan,
        (old, old_extent): (&Layout, &Extent),
        (new, extent): (&Layout, &Extent),
    ) -> Result<()> {
        addressable(plan, new)?;
        // the small weights are copied from the old place to the new one
        let twice = if side_stays(old, new) { 0 } else { taken(old.side_elems.saturating_mul(4)) };
        let wanted = wanted_bytes(plan, new, extent).saturating_add(twice);
        within(gpu.limit_bytes, gpu.free_bytes()?, wanted_bytes(plan, old, old_extent), wanted)
    }
    /// Lays everything but the weights out again; the caller has checked, and waited for the device.
    pub fn resize(
        &mut self,
        gpu: &mut Context,
        plan: &Plan,
        old: &Layout,
        new: &Layout,
        extent: &Extent,
    ) -> Result<()> {
        let old_side = if side_stays(old, new) { None } else { self.side.take() };
        let kv = std::mem::take(&mut self.kv);
        for at in [self.arena.take(), self.ints.take()].into_iter().chain(kv).flatten() {
            gpu.free(at)?;
        }
        gpu.free(self.log)?;
        let symbolic = |w: &WeightDecl| w.placement == Placement::Own && is_symbolic(w);
        for (w, at) in plan.weights.iter().zip(&mut self.own).filter(|(w, _)| symbolic(w)) {
            if let Some(at) = at.take() {
                gpu.free(at)?;
            }
            let bytes = packed::own(plan, w, &NoTensors, extent)?;
            let home = gpu.alloc(&w.name, bytes.len() as u64)?;
            gpu.write(home, &bytes)?;
            *at = Some(home);
        }
        self.reserve(gpu, plan, new, extent)?;
        if let (Some(from), Some(to)) = (old_side, self.side) {
            let fixed = new.side_fixed_elems * 4;
            gpu.copy(from, to, fixed)?;
            let rest = packed::side(plan, new, new.side_fixed_elems, &NoTensors, extent)?;
            gpu.write(to + fixed, bytemuck::cast_slice(&rest))?;
            gpu.wait()?;
            gpu.free(from)?;
        }
        Ok(())
    }
    fn reserve(&mut self, gpu: &mut Context, plan: &Plan, layout: &Layout, extent: &Extent) -> Result<()> {
        let mut zeroed = |name: &str, elems: u64| -> Result<Option<Address>> {
            if elems == 0 {
                return Ok(None);
            }
            let at = gpu.alloc(name, elems * 4)?;
            gpu.zero(at, elems * 4)?;
            Ok(Some(at))
        };
        if self.side.is_none() {
            self.side = zeroed("side", layout.side_elems)?;
        }
        self.arena = zeroed("arena", layout.arena_elems)?;
        self.ints = zeroed("ints", layout.ints_elems)?;
        self.kv.clear();
        for (i, slot) in plan.kv_slots.iter().enumerate() {
            self.kv.push(zeroed(&slot.name, layout.kv_elems(i))?);
        }
        self.log_rows = log_rows(plan, extent);
        self.log = zeroed("log", self.log_rows * LOG_LINES)?.unwrap_or_default();
        Ok(())
    }
    /// The buffer behind `home`.
    pub fn get(&self, home: Home) -> Result<Address> {
        let found = match home {
            Home::Arena => self.arena,
            Home::Ints => self.ints,
            Home::Side => self.side,
            Home::Kv(i) => self.kv.get(i as usize).copied().flatten(),
            Home::Own(w) => self.own.get(w as usize).copied().flatten(),
        };
        found.ok_or_else(|| Error::Plan(format!("nothing is bound to {home:?}")))
    }
    /// Bytes of the table of sizes and the log.
    pub fn extra_bytes(&self) -> u64 {
        SIZES_BYTES + self.log_rows * LOG_LINES * 4
    }
}

#[cfg(all(test, feature = "verify"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::super::Interpreted;
    use super::super::cache::Cache;
    use super::*;
    use crate::test_model;
    use frit_plan::KvSlotDecl;

    /// What is refused of a plan with one cache slot, two parts of `1024 T` elements, for so many rows, tokens and keys.
    fn refused(extent: [u64; 4], change: impl FnOnce(&mut Layout)) -> Option<String> {
        let mut plan = test_model::decoder(1 << 32, &[]);
        let part = || ["B", "16", "T", "64"].map(|d| d.parse().unwrap()).to_vec();
        plan.kv_slots = vec![KvSlotDecl { name: "layer0".into(), k_shape: part(), v_shape: part() }];
        let mut layout = Layout::new(&plan, &Extent(extent.to_vec())).unwrap();
        change(&mut layout);
        match addressable(&plan, &layout) {
            Ok(()) => None,
            Err(Error::Limit { what, wanted, limit }) => {
                assert!(wanted > limit && limit == 2_147_483_647);
                Some(what)
            }
            Err(other) => Some(other.to_string()),
        }
    }

    /// Plans of the test model: of each, what the driver takes for the whole.
    #[test]
    fn bytes_are_counted_as_the_driver_takes_them() {
        assert_eq!([0, 1, 512, 513, (1 << 20) - 1].map(taken), [512, 512, 512, 1024, 1 << 20]);
        assert_eq!([1 << 20, 2 << 20, (2 << 20) + 1, u64::MAX].map(taken), [2 << 20, 2 << 20, 4 << 20, u64::MAX]);
        let plan = test_model::decoder(1 << 32, &[]);
        let extent = Extent(vec![1, 1, 0, 1]);
        let mut layout = Layout::new(&plan, &extent).unwrap();
        let before = wanted_bytes(&plan, &layout, &extent);
        assert!(before >= layout.bytes().iter().sum::<u64>() && before.is_multiple_of(512));
        layout.arena_elems += (1 << 20) / 4;
        assert!(wanted_bytes(&plan, &layout, &extent) - before >= (2 << 20) - 1024);
    }

    #[test]
    fn small_weights_that_move_are_counted_twice() {
        let plan = test_model::decoder(1 << 32, &[]);
        let extent = Extent(vec![1, 1, 0, 1]);
        let mut old = Layout::new(&plan, &extent).unwrap();
        (old.side_elems, old.side_fixed_elems) = (1 << 20, 1 << 20);
        let mut new = Layout::new(&plan, &extent).unwrap();
        (new.side_elems, new.side_fixed_elems) = (1 << 20, 1 << 20);
        let held = wanted_bytes(&plan, &old, &extent);
        // so much is free that the buffers of `old`, given back, are just enough for those of `new`
        let device = Interpreted::default().with_memory(RESERVE_BYTES);
        let mut gpu = Context::new(Box::new(device.driver()), Cache::at(None), None);
        let mut check = |new: &Layout| Memory::check(&mut gpu, &plan, (&old, &extent), (new, &extent));
        assert!(check(&new).is_ok());
        new.side_fixed_elems -= 1;
        match check(&new) {
            Err(Error::Limit { wanted, limit, .. }) => assert_eq!((wanted, limit), (held + (4 << 20), held)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn buffers_longer_than_kernels_can_address_are_refused() {
        let half = 1 << 20;
        // Sizes are batch, tokens, past and capacity. Both parts together are one buffer.
        assert_eq!(refused([1, 1, 0, half - 1], |_| {}), None);
        assert_eq!(refused([1, 1, 0, half], |_| {}).unwrap(), "elements of the buffer `layer0`");
        assert_eq!(refused([half, 1, 0, 1], |_| {}).unwrap(), "elements of the buffer `layer0`");
        // Logits of a prompt are 97 elements a token, masks one a key.
        let most = (1 << 31) / 97;
        assert_eq!(refused([1, most - 1, 0, 1], |_| {}), None);
        assert_eq!(refused([1, most + 1, 0, 1], |_| {}).unwrap(), "elements of the buffer `arena`");
        assert_eq!(refused([1, 1, 0, 1], |l| l.ints_elems = 1 << 31).unwrap(), "elements of the buffer `ints`");
        assert_eq!(refused([1, 1, 0, 1], |l| l.side_elems = 1 << 31).unwrap(), "elements of the buffer `side`");
        assert_eq!(refused([1, 1, 0, 1], |l| l.side_elems = (1 << 31) - 1), None);
    }
}
