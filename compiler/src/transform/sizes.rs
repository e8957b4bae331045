//! Widths and heads of a checkpoint's layers, as its configuration and its extension give them.

use super::checkpoint::Checkpoint;
use super::error::{Error, Result};
use super::extension::Heads;
use super::family::Side;

/// The widths that all layers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Inner width of the feed-forward parts.
    pub ff: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl Checkpoint {
    /// The widths that the configuration gives.
    ///
    /// # Errors
    /// Fields that are missing.
    pub fn sizes(&self) -> Result<Sizes> {
        let f = self.family.sizes;
        let need = |field: &str| {
            self.number(field).filter(|n| *n > 0).map(|n| n as usize).ok_or_else(|| Error::Refused {
                step: "config.json".into(),
                problems: vec![format!("field `{field}` is missing or no positive number")],
            })
        };
        let (hidden, heads) = (need(f.hidden)?, need(f.heads)?);
        let optional = |field: Option<&str>| field.and_then(|n| self.number(n)).map(|n| n as usize);
        let ff = match self.number(f.ff) {
            Some(n) => n as usize,
            None if matches!(self.family.name, "gpt2" | "bloom") => 4 * hidden,
            None => need(f.ff)?,
        };
        Ok(Sizes {
            hidden,
            ff,
            heads,
            kv_heads: optional(f.kv_heads).unwrap_or(heads),
            head_dim: optional(f.head_dim).unwrap_or(hidden / heads),
        })
    }

    /// The heads of each layer of the (only or named) stack.
    ///
    /// # Errors
    /// As [`Checkpoint::sizes`] and [`Checkpoint::stack`].
    pub fn heads(&self, side: Side) -> Result<Vec<Heads>> {
        let (_, count) = self.stack(side)?;
        let own = self.extension()?.heads;
        let s = self.sizes()?;
        let plain =
            Heads { q: s.heads as u64, k: s.kv_heads as u64, v: s.kv_heads as u64, k_of: Vec::new(), v_of: Vec::new() };
        Ok(if own.is_empty() { vec![plain; count] } else { own })
    }

    /// Writes the heads of each layer: into the family's fields where they are alike and plain, else into the extension.
    ///
    /// # Errors
    /// As [`Checkpoint::sizes`].
    pub fn set_heads(&mut self, heads: Vec<Heads>) -> Result<()> {
        let s = self.sizes()?;
        let mut extension = self.extension()?;
        let f = self.family.sizes;
        let first = heads.first().cloned();
        let plain =
            first.filter(|h| heads.iter().all(|o| o == h) && h.k == h.v && h.k_of.is_empty() && h.v_of.is_empty());
        extension.heads = match plain {
            Some(h) if (h.q as usize, h.k as usize) == (s.heads, s.kv_heads) => Vec::new(),
            Some(h) if f.kv_heads.is_some() && f.head_dim.is_some() => {
                self.set(f.heads, h.q);
                self.set(f.kv_heads.unwrap_or_default(), h.k);
                self.set(f.head_dim.unwrap_or_default(), s.head_dim as u64);
                Vec::new()
            }
            _ => heads,
        };
        self.set_extension(&extension);
        Ok(())
    }

    /// The inner width of each layer's feed-forward part.
    ///
    /// # Errors
    /// As [`Checkpoint::sizes`] and [`Checkpoint::stack`].
    pub fn ff_widths(&self, side: Side) -> Result<Vec<usize>> {
        let (_, count) = self.stack(side)?;
        let own = self.extension()?.ff;
        let ff = self.sizes()?.ff;
        Ok(if own.is_empty() { vec![ff; count] } else { own.into_iter().map(|n| n as usize).collect() })
    }

    /// Writes the inner widths: into the family's field where they are alike, else into the extension.
    ///
    /// # Errors
    /// As [`Checkpoint::extension`].
    pub fn set_ff_widths(&mut self, widths: &[usize]) -> Result<()> {
        let mut extension = self.extension()?;
        extension.ff.clear();
        match widths.first() {
            Some(first) if widths.iter().all(|w| w == first) => self.set(self.family.sizes.ff, *first as u64),
            _ => extension.ff = widths.iter().map(|w| *w as u64).collect(),
        }
        self.set_extension(&extension);
        Ok(())
    }
}
