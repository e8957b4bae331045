//! Which layers share one set of weights.

use crate::transform::layer_list::LayerList;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A map from layers to sets of weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One set.
    All,
    /// `⌊i·M/N⌋`: 1,1,1,2,2,2.
    Sequence(usize),
    /// `i mod M`: 1,2,3,1,2,3.
    Cycle(usize),
    /// A cycle whose last round is reversed: 1,2,3,3,2,1.
    CycleRev(usize),
    /// The first and the last layers have their own, all between them share one.
    Sandwich {
        /// Layers at the beginning with weights of their own.
        first: usize,
        /// Layers at the end.
        last: usize,
    },
    /// `⌊i/n⌋`: each set serves n layers in a row.
    Repeat(usize),
    /// These groups; other layers have their own.
    Groups(Vec<LayerList>),
}

impl Pattern {
    /// The set of each of `count` layers.
    ///
    /// # Errors
    /// A pattern that does not fit that many layers.
    pub fn sets(&self, count: usize) -> Result<Vec<usize>, String> {
        let within = |m: usize| match m {
            0 => Err(format!("`{self}` has no set of weights")),
            m if m > count => Err(format!("`{self}` has {m} sets of weights for {count} layers")),
            m => Ok(m),
        };
        let layers = 0..count;
        Ok(match self {
            Pattern::All => vec![0; count],
            Pattern::Sequence(m) => {
                let m = within(*m)?;
                layers.map(|i| i * m / count).collect()
            }
            Pattern::Cycle(m) => {
                let m = within(*m)?;
                layers.map(|i| i % m).collect()
            }
            Pattern::CycleRev(m) => {
                let m = within(*m)?;
                let last_round = m * (count.div_ceil(m) - 1);
                layers.map(|i| if i < last_round || last_round == 0 { i % m } else { m - 1 - i % m }).collect()
            }
            Pattern::Sandwich { first, last } => {
                if first + last >= count {
                    return Err(format!("`{self}` leaves no layer of {count} in the middle"));
                }
                layers
                    .map(|i| {
                        if i < *first {
                            i
                        } else if i >= count - last {
                            i + first + last + 1 - count
                        } else {
                            *first
                        }
                    })
                    .collect()
            }
            Pattern::Repeat(n) => {
                let n = within(*n)?;
                layers.map(|i| i / n).collect()
            }
            Pattern::Groups(groups) => {
                let mut sets: Vec<Option<usize>> = vec![None; count];
                for (g, list) in groups.iter().enumerate() {
                    for i in list.resolve(count)? {
                        if let Some(other) = sets[i].replace(g) {
                            return Err(format!("layer {i} is in two groups, `{}` and `{list}`", groups[other]));
                        }
                    }
                }
                let own = groups.len();
                sets.iter().enumerate().map(|(i, s)| s.unwrap_or(own + i)).collect()
            }
        })
    }

    /// Layers by set, those with company only, in the order of their first layer.
    ///
    /// # Errors
    /// As [`Pattern::sets`].
    pub fn groups(&self, count: usize) -> Result<Vec<Vec<usize>>, String> {
        let sets = self.sets(count)?;
        let mut seen: Vec<usize> = Vec::new();
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (i, set) in sets.iter().enumerate() {
            match seen.iter().position(|s| s == set) {
                Some(g) => groups[g].push(i),
                None => {
                    seen.push(*set);
                    groups.push(vec![i]);
                }
            }
        }
        groups.retain(|g| g.len() > 1);
        Ok(groups)
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let wrong = || {
            format!(
                "`{text}` is no pattern; write all, sequence:M, cycle:M, cycle-rev:M, sandwich[:first=1,last=1], repeat:N or \
                 groups:0-2,3-5"
            )
        };
        let number = || rest.parse::<usize>().map_err(|_| wrong());
        match name {
            "all" if rest.is_empty() => Ok(Pattern::All),
            "sequence" => number().map(Pattern::Sequence),
            "cycle" => number().map(Pattern::Cycle),
            "cycle-rev" => number().map(Pattern::CycleRev),
            "repeat" => number().map(Pattern::Repeat),
            "sandwich" => {
                let (mut first, mut last) = (1, 1);
                for part in rest.split(',').filter(|p| !p.is_empty()) {
                    let (key, value) = part.split_once('=').ok_or_else(wrong)?;
                    let value = value.parse().map_err(|_| wrong())?;
                    match key {
                        "first" => first = value,
                        "last" => last = value,
                        _ => return Err(wrong()),
                    }
                }
                Ok(Pattern::Sandwich { first, last })
            }
            "groups" if !rest.is_empty() => {
                rest.split(',').map(|g| g.replace('+', ",").parse()).collect::<Result<_, _>>().map(Pattern::Groups)
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::All => f.write_str("all"),
            Pattern::Sequence(m) => write!(f, "sequence:{m}"),
            Pattern::Cycle(m) => write!(f, "cycle:{m}"),
            Pattern::CycleRev(m) => write!(f, "cycle-rev:{m}"),
            Pattern::Sandwich { first, last } => write!(f, "sandwich:first={first},last={last}"),
            Pattern::Repeat(n) => write!(f, "repeat:{n}"),
            Pattern::Groups(groups) => {
                let lists: Vec<String> = groups.iter().map(|g| g.to_string().replace(',', "+")).collect();
                write!(f, "groups:{}", lists.join(","))
            }
        }
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pattern, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
