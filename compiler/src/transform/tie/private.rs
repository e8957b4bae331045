//! What layers with shared weights keep for themselves.

use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Result, refuse};
use crate::transform::extension::{LORA_A, LORA_B};
use crate::transform::family::{Role, Side, Stack};
use crate::transform::linalg::random::Random;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Parts that stay private: `norms,bias,lora:8,prefix:4`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Private {
    /// Norms.
    pub norms: bool,
    /// Biases; layers without get zeros.
    pub bias: bool,
    /// Rank of an update of each shared linear map that adds nothing at first.
    pub lora: Option<usize>,
    /// Keys and values put in front of each layer's cache.
    pub prefix: Option<usize>,
}

impl Private {
    /// Norms alone.
    pub const NORMS: Private = Private { norms: true, bias: false, lora: None, prefix: None };

    /// Adds private parts that layers do not have yet. They change nothing: biases and second factors are zero.
    pub(super) fn add(
        &self,
        step: &str,
        c: &mut Checkpoint,
        side: Side,
        layers: &[usize],
        roles: &[Role],
    ) -> Result<()> {
        let (stack, _) = c.stack(side)?;
        let mut places: Vec<(usize, &'static str)> = Vec::new();
        for i in layers {
            for role in roles {
                if let Some((_, stem)) = c.stem(stack, *i, *role) {
                    if !places.contains(&(*i, stem)) {
                        places.push((*i, stem));
                    }
                }
            }
        }
        if self.bias {
            add_biases(step, c, stack, &places)?;
        }
        if let Some(rank) = self.lora {
            let mut extension = c.extension()?;
            if extension.lora.is_some_and(|r| r != rank as u64) {
                return refuse(step, "the checkpoint has updates of another rank already; fold them first");
            }
            extension.lora = Some(rank as u64);
            for (i, stem) in &places {
                let at = format!("{}{stem}", c.layer(stack, *i));
                let Some(shape) = c.shape(&format!("{at}.weight")).map(<[u64]>::to_vec) else { continue };
                let [mut out, mut from] = [shape[0] as usize, shape[1] as usize];
                if c.family().transposed {
                    std::mem::swap(&mut out, &mut from);
                }
                let scale = (from as f64).powf(-0.5);
                let mut random = Random::new(*i as u64);
                let a = (0..rank * from).map(|_| scale * random.normal()).collect();
                c.put(&format!("{at}.{LORA_A}"), &Dense::matrix(rank, from, a));
                c.put(&format!("{at}.{LORA_B}"), &Dense::zeros(&[out, rank]));
            }
            c.set_extension(&extension);
        }
        if self.prefix.is_some() {
            return refuse(step, "private prefixes are not made yet; keep norms, bias or lora:R private");
        }
        Ok(())
    }
}

fn add_biases(step: &str, c: &mut Checkpoint, stack: &Stack, places: &[(usize, &'static str)]) -> Result<()> {
    let lacking: Vec<&(usize, &str)> =
        places.iter().filter(|(i, stem)| !c.has(&format!("{}{stem}.bias", c.layer(stack, *i)))).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let Some(fields) = c.family().bias_fields else {
        return refuse(step, format!("`{}` has no biases in these places, and no field to say so", c.family().name));
    };
    if c.config.get("model_type").and_then(|v| v.as_str()) != Some("llama") {
        return refuse(step, "only configurations of `llama` say that every linear map has a bias");
    }
    let (_, count) = c.stack(stack.side)?;
    for stem in stack.linears.iter().map(|(_, stem)| stem) {
        for i in 0..count {
            let at = format!("{}{stem}", c.layer(stack, i));
            let Some(rows) = c.shape(&format!("{at}.weight")).map(|s| s[0] as usize) else { continue };
            if !c.has(&format!("{at}.bias")) {
                c.put(&format!("{at}.bias"), &Dense::zeros(&[rows]));
            }
        }
    }
    fields.iter().for_each(|f| c.set(f, true));
    Ok(())
}

impl FromStr for Private {
    type Err = String;

    fn from_str(text: &str) -> Result<Private, String> {
        let mut private = Private::default();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let wrong =
                || format!("`{part}` is nothing that can be private; write norms, bias, lora:RANK or prefix:TOKENS");
            let number = |n: &str| n.parse::<usize>().ok().filter(|n| *n > 0).ok_or_else(wrong);
            match part.split_once(':') {
                None if part == "norms" => private.norms = true,
                None if part == "bias" => private.bias = true,
                Some(("lora", n)) => private.lora = Some(number(n)?),
                Some(("prefix", n)) => private.prefix = Some(number(n)?),
                _ => return Err(wrong()),
            }
        }
        Ok(private)
    }
}

impl fmt::Display for Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.norms.then(|| "norms".to_owned()),
            self.bias.then(|| "bias".to_owned()),
            self.lora.map(|n| format!("lora:{n}")),
            self.prefix.map(|n| format!("prefix:{n}")),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(","))
    }
}

impl Serialize for Private {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Private {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Private, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
