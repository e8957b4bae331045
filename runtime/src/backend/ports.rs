//! What goes into a run and comes out of it, checked against the plan before a device sees it.

use super::Extent;
use super::layout::{Home, Layout, Place, elements};
use crate::{Error, Result, Tensor, tensor::Data};
use frit_kernels::dtype::{Scalar, Storage};
use frit_plan::{BufferRef, Plan, Port, Program};

/// Inputs no further apart than this go into one write.
const JOIN_BYTES: u64 = 4096;

/// An output of this run.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub place: Place,
    pub shape: Vec<u64>,
    pub elems: u64,
    pub storage: Storage,
}

/// The table of sizes, if the executor serves them.
pub(crate) fn check_sizes(plan: &Plan, program: &Program, extent: &Extent, sizes: &[u64]) -> Result<[u32; 16]> {
    if sizes.len() != plan.sizes.len() {
        let expected = plan.sizes.len().to_string();
        return Err(Error::Shape { what: "number of sizes".into(), expected, found: sizes.len().to_string() });
    }
    let mut table = [0; 16];
    for (((decl, v), most), to) in plan.sizes.iter().zip(sizes).zip(&extent.0).zip(&mut table) {
        let what = || format!("size {} of program `{}`", decl.name, program.name);
        let bounds = program.at_most.iter().filter(|(n, _)| *n == decl.name).map(|(_, m)| *m);
        let limit = bounds.chain([*most, u64::from(u32::MAX)]).min().unwrap_or(*most);
        if *v > limit {
            return Err(Error::Limit { what: what(), wanted: *v, limit });
        }
        if let Some((_, f)) = program.fixed.iter().find(|(n, f)| *n == decl.name && f != v) {
            return Err(Error::Shape { what: what(), expected: f.to_string(), found: v.to_string() });
        }
        *to = u32::try_from(*v).unwrap_or(u32::MAX);
    }
    Ok(table)
}

pub(crate) fn check_inputs<'a>(
    plan: &Plan,
    program: &Program,
    places: &[Place],
    sizes: &[u64],
    inputs: &[&'a Tensor],
) -> Result<Vec<(Place, bool, &'a Tensor)>> {
    if inputs.len() != program.inputs.len() {
        let names: Vec<&str> = program.inputs.iter().map(|p| p.name.as_str()).collect();
        let line = format!("program `{}` takes {:?}, {} tensors given", program.name, names, inputs.len());
        return Err(Error::Inputs(vec![line]));
    }
    let mut out = Vec::new();
    for ((port, place), tensor) in program.inputs.iter().zip(places).zip(inputs) {
        let shape = port_shape(plan, port, place, sizes)?;
        let is_float = matches!(tensor.data(), Data::F32(_));
        if tensor.shape() != shape || is_float != (port.storage.scalar() == Scalar::F32) {
            return Err(Error::Shape {
                what: format!("input `{}`", port.name),
                expected: format!("{} {shape:?}", port.storage),
                found: format!("{} {:?}", if is_float { "f32" } else { "i32" }, tensor.shape()),
            });
        }
        out.push((*place, matches!(port.buffer, BufferRef::Value(_)), *tensor));
    }
    Ok(out)
}

pub(crate) fn check_outputs(
    plan: &Plan,
    program: &Program,
    places: &[Place],
    sizes: &[u64],
    wanted: &[usize],
) -> Result<Vec<Wanted>> {
    let mut out = Vec::new();
    for i in wanted {
        let (Some(port), Some(place)) = (program.outputs.get(*i), places.get(*i)) else {
            return Err(Error::Plan(format!("program `{}` has no output {i}", program.name)));
        };
        let shape = port_shape(plan, port, place, sizes)?;
        let elems = shape.iter().product();
        let is_float = matches!(place.home, Home::Arena | Home::Kv(_));
        if is_float != (port.storage.scalar() == Scalar::F32) {
            return Err(Error::Plan(format!("output `{}` is {}, its buffer is not", port.name, port.storage)));
        }
        out.push(Wanted { place: *place, shape, elems, storage: port.storage });
    }
    Ok(out)
}

/// The places of the inputs or outputs of program `at`.
pub(crate) fn port_places(plan: &Plan, layout: &Layout, at: usize, ports: &[Port]) -> Result<Vec<Place>> {
    let one = |p: &Port| match p.buffer {
        BufferRef::Weight(_) => Err(Error::Plan(format!("input or output `{}` is a weight", p.name))),
        b => layout.place(plan, at, b),
    };
    ports.iter().map(one).collect()
}

/// The shape of a port under `sizes`, if its buffer has room for it.
fn port_shape(plan: &Plan, port: &Port, place: &Place, sizes: &[u64]) -> Result<Vec<u64>> {
    let elems = elements(plan, &port.shape, sizes)?;
    if elems > place.room {
        let what = format!("elements of `{}`", port.name);
        return Err(Error::Limit { what, wanted: elems, limit: place.room });
    }
    port.shape.iter().map(|d| Ok(plan.eval(d, sizes)?)).collect()
}

/// One write: where, and the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub home: Home,
    pub offset_bytes: u64,
    pub bytes: Vec<u8>,
}

/// Where a state lies that is to be written with `found` elements.
///
/// # Errors
/// A state that does not exist, and another number of elements than it has.
pub(crate) fn check_state(plan: &Plan, layout: &Layout, state: usize, sizes: &[u64], found: usize) -> Result<Place> {
    let (Some(decl), Some(place)) = (plan.states.get(state), layout.state(state)) else {
        return Err(Error::Plan(format!("there is no state {state}")));
    };
    let want = elements(plan, &decl.shape, sizes)?;
    if want != found as u64 || want > place.room {
        return Err(Error::Shape {
            what: format!("state `{}`", decl.name),
            expected: format!("{want} elements, at most {}", place.room),
            found: format!("{found} elements"),
        });
    }
    Ok(place)
}

/// Joins inputs to few writes. Between two values of a program nothing lives when it starts, so that a small gap is
/// written over; other buffers are joined only where they touch.
pub(crate) fn writes(inputs: &[(Place, bool, &Tensor)]) -> Vec<Write> {
    let mut order: Vec<_> = inputs.iter().filter(|(_, _, t)| !t.shape().contains(&0)).collect();
    order.sort_by_key(|(p, _, _)| (p.home, p.offset));
    let mut out: Vec<(Write, bool)> = Vec::new();
    for (place, is_value, tensor) in order {
        let bytes: &[u8] = match tensor.data() {
            Data::F32(v) => bytemuck::cast_slice(v),
            Data::I32(v) => bytemuck::cast_slice(v),
        };
        let offset_bytes = place.offset * 4;
        if let Some((w, all_values)) = out.last_mut()
            && w.home == place.home
            && let Some(gap) = offset_bytes.checked_sub(w.offset_bytes + w.bytes.len() as u64)
            && (gap == 0 || (*all_values && *is_value && gap <= JOIN_BYTES))
        {
            w.bytes.resize(w.bytes.len() + gap as usize, 0);
            w.bytes.extend_from_slice(bytes);
            *all_values &= *is_value;
        } else {
            out.push((Write { home: place.home, offset_bytes, bytes: bytes.to_vec() }, *is_value));
        }
    }
    out.into_iter().map(|(w, _)| w).collect()
}

/// Takes the outputs, one behind the other, apart.
pub(crate) fn tensors(wanted: &[Wanted], bytes: &[u8]) -> Result<Vec<Tensor>> {
    let mut rest = bytes;
    let mut out = Vec::new();
    for w in wanted {
        let (here, behind) = rest.split_at_checked(w.elems as usize * 4).unwrap_or((rest, &[]));
        rest = behind;
        let words = here.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
        let data = match w.storage {
            Storage::F32 => Data::F32(words.map(f32::from_ne_bytes).collect()),
            _ => Data::I32(words.map(i32::from_ne_bytes).collect()),
        };
        out.push(Tensor::new(w.shape.clone(), data)?);
    }
    Ok(out)
}
