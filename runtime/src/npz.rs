//! Named tensors in `.npz` files, as numpy writes and reads them.
//!
//! Reading takes floats of 16, 32 and 64 bits, integers of 8 to 64 bits and truth values, in either byte order and
//! either axis order. 64-bit integers are narrowed with a check, since kernels compute in 32 bits.

use crate::tensor::Data;
use crate::{Error, Result, Tensor};
use npyz::WriterBuilder;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// What a reader of arrays accepts at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Arrays of a file.
    pub arrays: usize,
    /// Bytes of all arrays together, unpacked.
    pub bytes: u64,
    /// Extents of an array.
    pub rank: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { arrays: 1024, bytes: 4 << 30, rank: 8 }
    }
}

/// An array to be written; integers go out with 64 bits, which is what tools of the field expect of tokens.
#[derive(Clone, Copy, Debug)]
pub enum Array<'a> {
    /// Floats, or integers widened to 64 bits.
    Tensor(&'a Tensor),
    /// Integers with their shape.
    I64(&'a [u64], &'a [i64]),
}

/// All arrays of a file, in its order.
///
/// # Errors
/// A file that is missing or damaged, an array of another type, an integer that does not fit 32 bits.
pub fn read(path: &Path) -> Result<Vec<(String, Tensor)>> {
    read_with(path, &Limits::default())
}

/// As [`read`], under given limits.
///
/// # Errors
/// As [`read`].
pub fn read_with(path: &Path, limits: &Limits) -> Result<Vec<(String, Tensor)>> {
    let bad = |reason: String| Error::Npz { path: path.to_owned(), reason };
    let io = |source| Error::Io { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(bad("is not a regular file".into()));
    }
    let file = BufReader::new(File::open(path).map_err(io)?);
    let mut archive = npyz::npz::NpzArchive::new(file).map_err(|e| bad(format!("is no npz file: {e}")))?;
    let zip = archive.zip_archive();
    if zip.len() > limits.arrays {
        let (wanted, limit) = (zip.len() as u64, limits.arrays as u64);
        return Err(Error::Limit { what: format!("arrays of {}", path.display()), wanted, limit });
    }
    let mut left = limits.bytes;
    let mut out: Vec<(String, Tensor)> = Vec::with_capacity(zip.len());
    for i in 0..zip.len() {
        let entry = zip.by_index(i).map_err(|e| bad(e.to_string()))?;
        let Some(name) = npyz::npz::array_name_from_file_name(entry.name()).map(str::to_owned) else { continue };
        let mut bytes = Vec::new();
        let unpacked = entry.take(left.saturating_add(1)).read_to_end(&mut bytes);
        unpacked.map_err(|e| bad(format!("array `{name}`: {e}")))?;
        if bytes.len() as u64 > left {
            let what = format!("bytes in {}", path.display());
            return Err(Error::Limit { what, wanted: limits.bytes.saturating_add(1), limit: limits.bytes });
        }
        left -= bytes.len() as u64;
        if out.iter().any(|(n, _)| *n == name) {
            return Err(bad(format!("array `{name}` occurs twice")));
        }
        let t = parse(&bytes, limits.rank).map_err(|e| bad(format!("array `{name}`: {e}")))?;
        out.push((name, t));
    }
    Ok(out)
}

/// Writes a file as a whole or not at all.
///
/// # Errors
/// Failures of the file system.
pub fn write(path: &Path, arrays: &[(&str, Array<'_>)]) -> Result<()> {
    let bad = |e: std::io::Error| Error::Io { path: path.to_owned(), source: e };
    frit_plan::format::replace_file(path, |file| {
        let mut npz = npyz::npz::NpzWriter::new(file);
        for (name, a) in arrays {
            match a {
                Array::I64(shape, v) => put(&mut npz, name, shape, v.iter().copied()).map_err(bad)?,
                Array::Tensor(t) => match t.data() {
                    Data::F32(v) => put(&mut npz, name, t.shape(), v.iter().copied()).map_err(bad)?,
                    Data::I32(v) => put(&mut npz, name, t.shape(), v.iter().map(|x| i64::from(*x))).map_err(bad)?,
                },
            }
        }
        npz.zip_writer().finish().map_err(|e| bad(std::io::Error::other(e)))?;
        Ok::<(), Error>(())
    })
}

fn put<T: npyz::AutoSerialize, W: std::io::Write + std::io::Seek>(
    npz: &mut npyz::npz::NpzWriter<W>,
    name: &str,
    shape: &[u64],
    values: impl Iterator<Item = T>,
) -> std::io::Result<()> {
    let mut w = npz.array(name, Default::default())?.default_dtype().shape(shape).begin_nd()?;
    w.extend(values)?;
    w.finish()
}

struct Head {
    kind: u8,
    width: usize,
    big_endian: bool,
    fortran: bool,
    shape: Vec<u64>,
}

fn parse(bytes: &[u8], rank: usize) -> std::result::Result<Tensor, String> {
    let (head, data) = split(bytes)?;
    let head = header(head)?;
    if head.shape.len() > rank {
        return Err(format!("{} extents, at most {rank} are read", head.shape.len()));
    }
    let elems = head.shape.iter().try_fold(1u64, |a, d| a.checked_mul(*d)).ok_or("too many elements")?;
    let want = elems.checked_mul(head.width as u64).ok_or("too many elements")?;
    if want != data.len() as u64 {
        return Err(format!("{} bytes of data, its shape {:?} needs {want}", data.len(), head.shape));
    }
    let words = data.chunks_exact(head.width).map(|c| {
        let mut w = [0u8; 8];
        for (i, b) in c.iter().enumerate() {
            if let Some(o) = w.get_mut(if head.big_endian { c.len() - 1 - i } else { i }) {
                *o = *b;
            }
        }
        u64::from_le_bytes(w)
    });
    let narrow = |v: i128| i32::try_from(v).map_err(|_| format!("the integer {v} does not fit 32 bits"));
    let data = match (head.kind, head.width) {
        (b'f', 2) => Data::F32(words.map(|w| half::f16::from_bits(w as u16).to_f32()).collect()),
        (b'f', 4) => Data::F32(words.map(|w| f32::from_bits(w as u32)).collect()),
        (b'f', 8) => Data::F32(words.map(|w| f64::from_bits(w) as f32).collect()),
        (b'b', 1) => Data::I32(words.map(|w| i32::from(w != 0)).collect()),
        (b'u', _) => Data::I32(words.map(|w| narrow(i128::from(w))).collect::<std::result::Result<_, _>>()?),
        (b'i', 1) => Data::I32(words.map(|w| i32::from(w as u8 as i8)).collect()),
        (b'i', 2) => Data::I32(words.map(|w| i32::from(w as u16 as i16)).collect()),
        (b'i', 4) => Data::I32(words.map(|w| w as u32 as i32).collect()),
        (b'i', 8) => Data::I32(words.map(|w| narrow(i128::from(w as i64))).collect::<std::result::Result<_, _>>()?),
        (k, w) => return Err(format!("elements of type `{}{w}` are not read", char::from(k))),
    };
    let data = if head.fortran { to_row_major(data, &head.shape) } else { data };
    Tensor::new(head.shape, data).map_err(|e| e.to_string())
}

fn to_row_major(data: Data, shape: &[u64]) -> Data {
    let mut from = Vec::new();
    let n: u64 = shape.iter().product();
    for i in 0..n {
        let (mut rest, mut at, mut index) = (i, Vec::new(), 0);
        for d in shape.iter().rev() {
            at.push((rest % d, *d));
            rest /= d;
        }
        for (x, d) in at {
            index = index * d + x;
        }
        from.push(index as usize);
    }
    match data {
        Data::F32(v) => Data::F32(from.iter().filter_map(|i| v.get(*i).copied()).collect()),
        Data::I32(v) => Data::I32(from.iter().filter_map(|i| v.get(*i).copied()).collect()),
    }
}

/// The header's text and the data.
fn split(bytes: &[u8]) -> std::result::Result<(&str, &[u8]), String> {
    let short = || "is cut off in its header".to_owned();
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("does not start as numpy arrays do")?;
    let at = |i: usize| rest.get(i).map(|b| usize::from(*b)).ok_or_else(short);
    let (start, len) = match at(0)? {
        1 => (4, at(2)? | at(3)? << 8),
        2 | 3 => (6, at(2)? | at(3)? << 8 | at(4)? << 16 | at(5)? << 24),
        v => return Err(format!("has version {v}")),
    };
    let text = rest.get(start..).and_then(|r| r.get(..len)).ok_or_else(short)?;
    let data = rest.get(start + len..).ok_or_else(short)?;
    Ok((std::str::from_utf8(text).map_err(|_| "has a header that is no text")?, data))
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
fn header(text: &str) -> std::result::Result<Head, String> {
    let field = |name: &str| -> std::result::Result<&str, String> {
        let key = [format!("'{name}'"), format!("\"{name}\"")];
        let after = key.iter().find_map(|k| text.split_once(k.as_str())).map(|(_, r)| r.trim_start());
        after
            .and_then(|r| r.strip_prefix(':'))
            .map(str::trim_start)
            .ok_or_else(|| format!("its header names no {name}"))
    };
    let descr = field("descr")?;
    let descr = descr.strip_prefix(['\'', '"']).and_then(|r| r.split(['\'', '"']).next());
    let descr = descr.ok_or("structured arrays are not read")?;
    let (order, rest) = match descr.as_bytes() {
        [o @ (b'<' | b'>' | b'|' | b'='), rest @ ..] => (*o, rest),
        rest => (b'=', rest),
    };
    let unknown = || format!("elements of type `{}` are not read", descr.chars().take(40).collect::<String>());
    let (kind, width) = rest.split_first().ok_or_else(unknown)?;
    let width = std::str::from_utf8(width).ok().and_then(|w| w.parse::<usize>().ok());
    let width = width.filter(|w| matches!(w, 1 | 2 | 4 | 8)).ok_or_else(unknown)?;
    let fortran = match field("fortran_order")? {
        r if r.starts_with("True") => true,
        r if r.starts_with("False") => false,
        _ => return Err("its header has no axis order".into()),
    };
    let shape = field("shape")?.strip_prefix('(').and_then(|r| r.split_once(')')).map(|(s, _)| s);
    let shape = shape.ok_or("its header has no shape")?;
    let extents = shape.split(',').map(str::trim).filter(|s| !s.is_empty());
    let shape = extents.map(|s| s.trim_end_matches('L').parse::<u64>().map_err(|_| format!("`{s}` is no extent")));
    Ok(Head {
        kind: *kind,
        width,
        big_endian: order == b'>',
        fortran,
        shape: shape.collect::<std::result::Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
        let order = if fortran { "True" } else { "False" };
        let text = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
        let mut b = b"\x93NUMPY\x01\x00".to_vec();
        b.extend((text.len() as u16).to_le_bytes());
        b.extend(text.as_bytes());
        b.extend(data);
        b
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let p = dir.path().join("x.npz");
        let f = Tensor::f32(&[2, 2], vec![1.0, -2.5, 3e-20, f32::MAX]).unwrap();
        let i = Tensor::i32(&[3], vec![1, -2, i32::MAX]).unwrap();
        write(&p, &[("f", Array::Tensor(&f)), ("i", Array::Tensor(&i)), ("t", Array::I64(&[1, 2], &[7, 8]))]).unwrap();
        let t = Tensor::i32(&[1, 2], vec![7, 8]).unwrap();
        assert_eq!(read(&p).unwrap(), [("f".into(), f), ("i".into(), i), ("t".into(), t)]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
    #[test]
    fn every_element_type_is_converted() {
        let as_i = |d: &str, b: &[u8]| parse(&npy(d, false, "(1,)", b), 8).unwrap().as_i32().unwrap()[0];
        assert_eq!(as_i("<i8", &(-5i64).to_le_bytes()), -5);
        assert_eq!(as_i(">i8", &(-5i64).to_be_bytes()), -5);
        assert_eq!(as_i("|i1", &[255]), -1);
        assert_eq!(as_i("|u1", &[255]), 255);
        assert_eq!(as_i("<i2", &(-7i16).to_le_bytes()), -7);
        assert_eq!(as_i("|b1", &[1]), 1);
        let as_f = |d: &str, b: &[u8]| parse(&npy(d, false, "()", b), 8).unwrap().as_f32().unwrap()[0];
        assert_eq!(as_f("<f8", &0.5f64.to_le_bytes()), 0.5);
        assert_eq!(as_f("<f2", &half::f16::from_f32(1.5).to_le_bytes()), 1.5);
    }
    #[test]
    fn column_order_is_turned() {
        let data: Vec<u8> = [1i32, 4, 2, 5, 3, 6].iter().flat_map(|v| v.to_le_bytes()).collect();
        let t = parse(&npy("<i4", true, "(2, 3)", &data), 8).unwrap();
        assert_eq!(t.as_i32().unwrap(), [1, 2, 3, 4, 5, 6]);
    }
    #[test]
    fn what_cannot_be_read_is_said() {
        let fails = |b: &[u8]| parse(b, 8).unwrap_err();
        assert!(fails(&npy("<i8", false, "(1,)", &(1i64 << 40).to_le_bytes())).contains("does not fit 32 bits"));
        assert!(fails(&npy("<c8", false, "(1,)", &[0; 8])).contains("type `c8`"));
        assert!(fails(&npy("|O", false, "(1,)", &[0; 8])).contains("type `|O`"));
        assert!(fails(&npy("<f4", false, "(3,)", &[0; 8])).contains("needs 12"));
        let huge = "(9223372036854775807, 9223372036854775807)";
        assert!(fails(&npy("<f4", false, huge, &[])).contains("too many"));
        let whole = npy("<f4", false, "(2,)", &[0; 8]);
        for n in 0..whole.len() {
            assert!(parse(&whole[..n], 8).is_err(), "{n}");
        }
    }
    #[test]
    fn limits_hold() {
        let dir = tempfile::tempdir().unwrap();
        let p = dir.path().join("x.npz");
        let f = Tensor::f32(&[64], vec![0.0; 64]).unwrap();
        write(&p, &[("f", Array::Tensor(&f)), ("g", Array::Tensor(&f))]).unwrap();
        let small = Limits { bytes: 300, ..Limits::default() };
        assert!(matches!(read_with(&p, &small), Err(Error::Limit { .. })));
        let few = Limits { arrays: 1, ..Limits::default() };
        assert!(matches!(read_with(&p, &few), Err(Error::Limit { .. })));
    }
}
