//! The fields of sizes.

use crate::ingest::hf::common_fields::even_head_dim;
use crate::ingest::hf::fields::Fields;
use crate::ingest::recipe::{COMMON_FIELDS, Sizes};

/// Values of sizes that a configuration does not state.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SizeDefaults {
    pub vocab: Option<u64>,
    pub hidden: Option<u64>,
    pub inner: Option<u64>,
    pub layers: Option<u64>,
    pub heads: Option<u64>,
    /// Key heads; `None`: as many as heads.
    pub kv_heads: Option<u64>,
    /// Elements of a head; `None`: the hidden size is shared evenly.
    pub head_dim: Option<u64>,
    pub context: Option<u64>,
}

impl Sizes {
    /// Reads sizes by the common names.
    pub fn read(f: &mut Fields<'_>, defaults: SizeDefaults) -> Sizes {
        let limits = f.limits();
        let names = COMMON_FIELDS;
        let hidden = f.size(names.hidden, defaults.hidden);
        let layers = f.size_to(names.layers, defaults.layers, limits.layers);
        let heads = f.size(names.heads, defaults.heads);
        let kv_default = defaults.kv_heads.filter(|_| !f.present(names.kv_heads)).unwrap_or(heads);
        let kv_heads = f.size(names.kv_heads, Some(kv_default));
        if !heads.is_multiple_of(kv_heads) {
            f.gap(
                names.kv_heads,
                format!("is {kv_heads}, which does not divide num_attention_heads {heads}"),
                "correct one of them",
            );
        }
        let head_dim = match (f.get("head_dim"), defaults.head_dim) {
            (Some(_), _) => f.size("head_dim", None),
            (None, Some(dim)) if !f.present("head_dim") => dim,
            _ => even_head_dim(f, names.heads, hidden, heads),
        };
        Sizes {
            vocab: f.size_to("vocab_size", defaults.vocab, limits.vocabulary),
            hidden,
            inner: f.size(names.inner, defaults.inner),
            layers,
            heads,
            kv_heads,
            head_dim,
            context: f.size(names.context, defaults.context),
        }
    }

    /// The number of layers as a length; 0 where it is above the limit, which is a gap then.
    pub fn depth(&self, f: &Fields<'_>) -> usize {
        if self.layers <= f.limits().layers { self.layers as usize } else { 0 }
    }
}
