//! Lists of layers as users write them: `0,3,8-12`, `every:2`, `first:2`, `last:4`, `middle`, `all`, `-1`, and in front
//! of each item, for models with two stacks, `enc:` or `dec:`.

use super::family::Side;
use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A list of layers, before it is known how many there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerList(Vec<Item>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    side: Option<Side>,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    All,
    /// All but the first and the last.
    Middle,
    /// Layers 0, n, 2n, …
    Every(usize),
    First(usize),
    Last(usize),
    /// Both ends included.
    Range(usize, usize),
    /// Counted from the end: 1 is the last.
    FromEnd(usize),
}

impl LayerList {
    /// Every layer.
    pub fn all() -> LayerList {
        LayerList(vec![Item { side: None, what: What::All }])
    }
    /// These layers.
    pub fn of(layers: impl IntoIterator<Item = usize>) -> LayerList {
        LayerList(layers.into_iter().map(|i| Item { side: None, what: What::Range(i, i) }).collect())
    }

    /// The side that every item names; `None` when none does.
    ///
    /// # Errors
    /// Items that name different sides.
    pub fn side(&self) -> Result<Option<Side>, String> {
        let sides: BTreeSet<Option<Side>> = self.0.iter().map(|i| i.side).collect();
        match sides.len() {
            0 => Ok(None),
            1 => Ok(sides.into_iter().next().flatten()),
            _ => Err(format!("`{self}` mixes layers of the encoder and of the decoder; give them apart")),
        }
    }

    /// The layers in the order written, without repetitions; `count` layers exist.
    ///
    /// # Errors
    /// Layers that do not exist.
    pub fn ordered(&self, count: usize) -> Result<Vec<usize>, String> {
        let mut out: Vec<usize> = Vec::new();
        for item in &self.0 {
            let beyond = |i: usize| format!("layer {i} does not exist; there are {count} (0 to {})", count.max(1) - 1);
            let some: Vec<usize> = match item.what {
                What::All => (0..count).collect(),
                What::Middle => (1..count.saturating_sub(1)).collect(),
                What::Every(n) => (0..count).step_by(n).collect(),
                What::First(n) | What::Last(n) if n > count => {
                    return Err(format!("`{item}` asks for {n} layers; there are {count}"));
                }
                What::First(n) => (0..n).collect(),
                What::Last(n) => (count - n..count).collect(),
                What::Range(_, to) if to >= count => return Err(beyond(to)),
                What::Range(from, to) => (from..=to).collect(),
                What::FromEnd(n) => {
                    vec![count.checked_sub(n).ok_or_else(|| format!("layer -{n} does not exist; there are {count}"))?]
                }
            };
            for i in some {
                if !out.contains(&i) {
                    out.push(i);
                }
            }
        }
        Ok(out)
    }

    /// The layers in ascending order.
    ///
    /// # Errors
    /// As [`LayerList::ordered`].
    pub fn resolve(&self, count: usize) -> Result<Vec<usize>, String> {
        let mut layers = self.ordered(count)?;
        layers.sort_unstable();
        Ok(layers)
    }
}

impl FromStr for LayerList {
    type Err = String;

    fn from_str(text: &str) -> Result<LayerList, String> {
        let items: Vec<Item> = text.split(',').map(|item| item.trim().parse()).collect::<Result<_, _>>()?;
        Ok(LayerList(items))
    }
}

impl FromStr for Item {
    type Err = String;

    fn from_str(text: &str) -> Result<Item, String> {
        let (side, rest) = match (text.strip_prefix("enc:"), text.strip_prefix("dec:")) {
            (Some(rest), _) => (Some(Side::Encoder), rest),
            (_, Some(rest)) => (Some(Side::Decoder), rest),
            _ => (None, text),
        };
        let wrong = || {
            format!(
                "`{text}` is no list of layers; write 0,3,8-12, every:2, first:2, last:4, middle, all or -1, with enc: or \
                 dec: in front where there are two stacks"
            )
        };
        let number = |s: &str| s.parse::<usize>().map_err(|_| wrong());
        let positive = |s: &str| number(s).and_then(|n| if n == 0 { Err(wrong()) } else { Ok(n) });
        let what = match rest {
            "all" => What::All,
            "middle" => What::Middle,
            _ => match (rest.split_once(':'), rest.strip_prefix('-'), rest.split_once('-')) {
                (Some(("every", n)), ..) => What::Every(positive(n)?),
                (Some(("first", n)), ..) => What::First(positive(n)?),
                (Some(("last", n)), ..) => What::Last(positive(n)?),
                (Some(_), ..) => return Err(wrong()),
                (_, Some(n), _) => What::FromEnd(positive(n)?),
                (_, _, Some((from, to))) => {
                    let (from, to) = (number(from)?, number(to)?);
                    if from > to {
                        return Err(format!("`{text}` ends before it begins"));
                    }
                    What::Range(from, to)
                }
                _ => number(rest).map(|n| What::Range(n, n))?,
            },
        };
        Ok(Item { side, what })
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.side {
            Some(Side::Encoder) => f.write_str("enc:")?,
            Some(Side::Decoder) => f.write_str("dec:")?,
            _ => {}
        }
        match self.what {
            What::All => f.write_str("all"),
            What::Middle => f.write_str("middle"),
            What::Every(n) => write!(f, "every:{n}"),
            What::First(n) => write!(f, "first:{n}"),
            What::Last(n) => write!(f, "last:{n}"),
            What::Range(a, b) if a == b => write!(f, "{a}"),
            What::Range(a, b) => write!(f, "{a}-{b}"),
            What::FromEnd(n) => write!(f, "-{n}"),
        }
    }
}

impl fmt::Display for LayerList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&items.join(","))
    }
}

impl Serialize for LayerList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayerList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<LayerList, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = LayerList;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of layers, such as 0,3,8-12 or last:4")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<LayerList, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<LayerList, E> {
                n.to_string().parse().map_err(E::custom)
            }
            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<LayerList, E> {
                n.to_string().parse().map_err(E::custom)
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<LayerList, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element::<serde_json::Value>()? {
                    let text = item.as_str().map_or_else(|| item.to_string(), str::to_owned);
                    items.extend(text.parse::<LayerList>().map_err(A::Error::custom)?.0);
                }
                Ok(LayerList(items))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn list(text: &str, count: usize) -> Vec<usize> {
        text.parse::<LayerList>().unwrap().resolve(count).unwrap()
    }

    #[test]
    fn every_form_names_its_layers() {
        assert_eq!(list("0,3,8-10", 12), [0, 3, 8, 9, 10]);
        assert_eq!(list("every:2", 5), [0, 2, 4]);
        assert_eq!(list("first:2,last:2", 6), [0, 1, 4, 5]);
        assert_eq!(list("middle", 4), [1, 2]);
        assert_eq!(list("-1", 6), [5]);
        assert_eq!(list("all", 3), [0, 1, 2]);
        assert_eq!(list("2,1,2", 3), [1, 2]);
        assert_eq!("2,0".parse::<LayerList>().unwrap().ordered(3).unwrap(), [2, 0]);
        assert_eq!("dec:1,dec:2".parse::<LayerList>().unwrap().side(), Ok(Some(Side::Decoder)));
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let beyond = "3,7".parse::<LayerList>().unwrap().resolve(6).unwrap_err();
        assert_eq!(beyond, "layer 7 does not exist; there are 6 (0 to 5)");
        for wrong in ["", "x", "3-", "every:0", "last:", "7-3", "odd:2", "--1"] {
            assert!(wrong.parse::<LayerList>().is_err(), "{wrong}");
        }
        assert!("enc:0,dec:1".parse::<LayerList>().unwrap().side().is_err());
        assert!("last:9".parse::<LayerList>().unwrap().resolve(6).is_err());
    }

    #[test]
    fn it_is_written_as_it_is_read() {
        for text in ["0,3,8-12", "every:2", "enc:all", "dec:last:4", "middle", "-1"] {
            assert_eq!(text.parse::<LayerList>().unwrap().to_string(), text);
        }
        let read: LayerList = serde_json::from_str("[1, \"4-5\"]").unwrap();
        assert_eq!(read.resolve(6).unwrap(), [1, 4, 5]);
    }
}
