//! Binds tensors of a file to the places that an architecture has for them.
//!
//! A binder knows every tensor of the file. Each place asks for its tensor by name and shape; what is missing, has
//! another shape or another type is collected, and so is every tensor that no place asked for.

use super::builder::ModelBuilder;
use super::error::Gap;
use crate::graph::WeightId;
use frit_kernels::dtype::Storage;
use indexmap::{IndexMap, IndexSet};

/// A tensor of a file, seen from outside.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    /// How it is stored, if that is read.
    pub storage: Option<Storage>,
    /// The type as the file calls it.
    pub kind: String,
    /// The dimensions, outermost first.
    pub shape: Vec<u64>,
    /// The name it is stored by, where several names share it.
    pub stored_as: Option<String>,
}

/// One dimension of a place: its size and the fields that it comes from.
pub(crate) type Extent<'a> = (u64, &'a str);

/// Hands out the tensors of a file.
pub(crate) struct Binder<'a> {
    builder: &'a mut ModelBuilder,
    stock: &'a IndexMap<String, Stored>,
    used: IndexSet<String>,
    gaps: Vec<Gap>,
    types: &'static str,
}

impl<'a> Binder<'a> {
    /// A binder over `stock`; `types` lists the types that are read, for messages.
    pub fn new(builder: &'a mut ModelBuilder, stock: &'a IndexMap<String, Stored>, types: &'static str) -> Binder<'a> {
        Binder { builder, stock, used: IndexSet::new(), gaps: Vec::new(), types }
    }

    /// Whether the file has a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.stock.contains_key(name)
    }
    /// The dimensions of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[u64]> {
        self.stock.get(name).map(|t| t.shape.as_slice())
    }

    /// The first of these prefixes with which the file has a tensor `{prefix}{probe}`; else the first of all.
    pub fn prefix<'p>(&self, prefixes: &[&'p str], probe: &str) -> &'p str {
        let found = prefixes.iter().find(|p| self.has(&format!("{p}{probe}")));
        found.or(prefixes.first()).copied().unwrap_or("")
    }

    /// How many of `count` layers, whose tensors begin with `prefix(i)`, are to be bound. A layer without any tensor is
    /// one gap and not one for each tensor; it is blamed on `field`.
    pub fn layers(&mut self, count: u64, field: &str, prefix: impl Fn(u64) -> String) -> Vec<u64> {
        let mut there = IndexSet::new();
        let (head, tail) = match prefix(0).split_once('0') {
            Some((head, tail)) => (head.to_owned(), tail.to_owned()),
            None => return (0..count).collect(),
        };
        for name in self.stock.keys() {
            let number = name
                .strip_prefix(&head)
                .and_then(|rest| rest.split_once(&tail))
                .and_then(|(n, _)| n.parse::<u64>().ok());
            there.extend(number);
        }
        let (bound, absent): (Vec<u64>, Vec<u64>) = (0..count).partition(|i| there.contains(i));
        if let Some(first) = absent.first() {
            let more = match absent.len() {
                1 => String::new(),
                n => format!(", nor do {} layers after it", n - 1),
            };
            let problem = format!("does not exist{more}, although {field} is {count}");
            let next = "correct the configuration or download the weights again";
            self.gaps.push(Gap::tensor(&format!("{}*", prefix(*first)), problem, next));
        }
        bound
    }

    /// The tensor of that name, as stored.
    pub fn take(&mut self, name: &str, shape: &[Extent<'_>]) -> WeightId {
        match self.check(name, shape) {
            Some((storage, shape)) => self.builder.stored_as(name, self.source_name(name), storage, &shape),
            None => WeightId(u32::MAX),
        }
    }
    /// The tensor of that name, stored `[K, N]` and used as `[N, K]`.
    pub fn take_transposed(&mut self, name: &str, k: Extent<'_>, n: Extent<'_>) -> WeightId {
        match self.check(name, &[k, n]) {
            Some((storage, _)) => self.builder.stored_transposed_as(name, self.source_name(name), storage, [k.0, n.0]),
            None => WeightId(u32::MAX),
        }
    }
    /// The tensor of that name, stored `[K]` and used as `[1, K]`.
    pub fn take_row(&mut self, name: &str, k: Extent<'_>) -> WeightId {
        match self.check(name, &[k]) {
            Some((storage, _)) => {
                let part = self.source_name(name).to_owned();
                self.builder.stacked(&format!("{name} as a row"), vec![part], storage, &[k.0])
            }
            None => WeightId(u32::MAX),
        }
    }
    /// `count` tensors `name(i)` of one shape as one tensor with an axis more, called `name`.
    pub fn take_stacked(
        &mut self,
        name: &str,
        count: u64,
        part: impl Fn(u64) -> String,
        shape: &[Extent<'_>],
    ) -> WeightId {
        let mut storage = None;
        let mut parts = Vec::new();
        for i in 0..count {
            let part = part(i);
            let Some((own, _)) = self.check(&part, shape) else { return WeightId(u32::MAX) };
            if *storage.get_or_insert(own) != own {
                let problem = format!("is stored as {own}, unlike the tensors that it is used with");
                self.gaps.push(Gap::tensor(&part, problem, "store them in one type"));
                return WeightId(u32::MAX);
            }
            parts.push(self.source_name(&part).to_owned());
        }
        let shape: Vec<u64> = shape.iter().map(|(size, _)| *size).collect();
        match storage {
            Some(storage) => self.builder.stacked(name, parts, storage, &shape),
            None => WeightId(u32::MAX),
        }
    }
    /// The tensor of that name, whose elements are used in rows of other lengths: `flat` are its extents there.
    pub fn take_flat(&mut self, name: &str, shape: &[Extent<'_>], flat: &[u64]) -> WeightId {
        match self.check(name, shape) {
            Some((storage, _)) => self.builder.stored(name, storage, flat),
            None => WeightId(u32::MAX),
        }
    }
    /// The model under construction, for constants that no file holds.
    pub fn builder(&mut self) -> &mut ModelBuilder {
        self.builder
    }
    /// The tensor of that name if the file has it.
    #[allow(dead_code, reason = "families whose files leave tensors out")]
    pub fn take_if_there(&mut self, name: &str, shape: &[Extent<'_>]) -> Option<WeightId> {
        self.has(name).then(|| self.take(name, shape))
    }

    /// The name a tensor is stored by.
    fn source_name<'n>(&self, name: &'n str) -> &'n str
    where
        'a: 'n,
    {
        let stock: &'a IndexMap<String, Stored> = self.stock;
        stock.get(name).and_then(|t| t.stored_as.as_deref()).unwrap_or(name)
    }

    fn check(&mut self, name: &str, shape: &[Extent<'_>]) -> Option<(Storage, Vec<u64>)> {
        let Some(tensor) = self.stock.get(name) else {
            self.gaps.push(Gap::tensor(name, "is missing", "download the weights again, or correct the configuration"));
            return None;
        };
        self.used.insert(name.to_owned());
        let want: Vec<u64> = shape.iter().map(|(size, _)| *size).collect();
        if tensor.shape != want {
            let fields: Vec<&str> = shape.iter().map(|(_, field)| *field).collect();
            let problem = format!("has the shape {:?}; [{}] is {want:?}", tensor.shape, fields.join(", "));
            self.gaps.push(Gap::tensor(name, problem, "correct the configuration or the weights"));
            return None;
        }
        let Some(storage) = tensor.storage else {
            let problem = format!("is stored as {}, which is not read here", tensor.kind);
            self.gaps.push(Gap::tensor(name, problem, format!("convert it to one of {}", self.types)));
            return None;
        };
        Some((storage, want))
    }

    /// Everything that is wrong, with the tensors that no place asked for and that `ignorable` does not know.
    pub fn finish(mut self, ignorable: impl Fn(&str) -> bool) -> Vec<Gap> {
        for name in self.stock.keys().filter(|name| !self.used.contains(*name) && !ignorable(name)) {
            let problem = "has no place in this architecture with this configuration";
            self.gaps.push(Gap::tensor(
                name,
                problem,
                "correct the configuration, or remove the tensor if it is not needed",
            ));
        }
        self.gaps
    }
}
