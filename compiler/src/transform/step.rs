//! Every transform by its name: the one list that recipes and the command line read.

use super::Transform;
use super::calibration::Aid;
use super::checkpoint::Checkpoint;
use super::edit::{
    DropAttention, DropFfn, ExpandLayers, KeepLayers, LoopLayers, PermuteLayers, PermuteNeurons, PruneHeads,
    PruneLayers, ReplaceLinear, Slice, Traverse, Truncate,
};
use super::error::{Error, Result};
use super::merge::{Fold, FoldAdapters, FoldNorms, FuseHeads, LowRank, MergeLayers, MergeLinears, Project, Recurse};
use super::slots::{ShareAttention, ShareKv, ValueResidual};
use super::tie::{DedupeWeights, ShareAttn, ShareFfn, ShareLayers, TieEmbeddings, TieEncoderDecoder, Untie, WidenFfn};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

macro_rules! steps {
    ($($name:literal $variant:ident $what:literal,)*) => {
        /// A transform with its options.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "transform")]
        #[expect(missing_docs, reason = "the types say it")]
        pub enum Step { $(#[serde(rename = $name)] $variant($variant),)* }

        /// Name and purpose of every transform.
        pub const STEPS: &[(&str, &str)] = &[$(($name, $what),)*];

        impl Step {
            /// The transform.
            pub fn transform(&self) -> &dyn Transform {
                match self { $(Step::$variant(t) => t,)* }
            }

            /// A transform by its name and its options.
            ///
            /// # Errors
            /// A name that does not exist, and options that it does not have or cannot be what they are.
            pub fn named(name: &str, options: Map<String, Value>) -> Result<Step> {
                let wrong = |e: serde_json::Error| Error::Recipe { at: format!(" ({name})"), problem: e.to_string() };
                match name {
                    $($name => serde_json::from_value(Value::Object(options)).map(Step::$variant).map_err(wrong),)*
                    _ => {
                        let known: Vec<&str> = STEPS.iter().map(|(n, _)| *n).collect();
                        let problem = format!("there is no transform of this name; one of {}", known.join(", "));
                        Err(Error::Recipe { at: format!(" ({name})"), problem })
                    }
                }
            }
        }

        $(
            impl From<$variant> for Step {
                fn from(t: $variant) -> Step {
                    Step::$variant(t)
                }
            }
        )*
    };
}

steps! {
    "share-layers" ShareLayers "layers share their weights: --pattern all|sequence:M|cycle:M|cycle-rev:M|sandwich|repeat:N|groups:0-2,3-5 --init --private",
    "share-ffn" ShareFfn "layers share their feed-forward part: --layers or --pattern",
    "share-attn" ShareAttn "layers share the weights of attention: --layers or --pattern",
    "tie-encoder-decoder" TieEncoderDecoder "decoder layers use the encoder's weights: --cross",
    "tie-embeddings" TieEmbeddings "the head uses the embedding's table: --mean",
    "untie" Untie "every tensor has a buffer of its own",
    "dedupe-weights" DedupeWeights "tensors of equal content share one buffer",
    "widen-ffn" WidenFfn "one feed-forward part that is the sum of several: --layers, --pad-to N",
    "prune-layers" PruneLayers "layers go: --layers, or --auto N --metric; --reassign",
    "keep-layers" KeepLayers "only these layers stay: --layers",
    "truncate" Truncate "the first layers stay: --layers N, --encoder-layers N, --decoder-layers N",
    "drop-ffn" DropFfn "layers lose their feed-forward part: --layers",
    "drop-attention" DropAttention "layers lose attention: --layers",
    "replace-linear" ReplaceLinear "layers become linear maps: --layers or --auto N, --ridge, --calib",
    "permute-layers" PermuteLayers "layers in another order: --order",
    "expand-layers" ExpandLayers "layers come in: --positions --init zeros|copy|slerp:T|linear:T, or --repeat N",
    "loop" LoopLayers "neighbours run several times: --body --trips",
    "traverse" Traverse "each of some layers runs several times, blended with what it gave: --layers --times --gate B|DIRECTORY",
    "prune-heads" PruneHeads "key heads go, with their queries: --kv-heads --layers",
    "slice" Slice "the first neurons or heads stay: --ff --kv-heads --layers",
    "permute-neurons" PermuteNeurons "neurons in the order of importance: --by --layers",
    "merge-layers" MergeLayers "two layers become one: --pairs L:M or --auto N, --method linear|slerp|fisher|hadamard|regmean",
    "merge-linears" MergeLinears "linear maps in a row become one",
    "fold-norms" FoldNorms "gains of norms go into the maps behind them",
    "fold-adapters" FoldAdapters "low-rank updates go into their weights: --untie",
    "fold" Fold "similar neurons and heads become one: --ff --heads --cluster",
    "fuse-heads" FuseHeads "fewer key heads and value heads: --k --v --by",
    "project" Project "a narrower residual stream: --hidden, --calib or --rotation SEED",
    "recurse" Recurse "loops over a block of layers with low-rank updates: --block --init --lora-rank",
    "low-rank" LowRank "maps or the embedding as products: --rank --embedding --layers",
    "share-kv" ShareKv "layers use the keys and values of others: --pattern cla:S|tail:N, --map, --kv-layers, --kv-heads, --v-from; --init",
    "share-attention" ShareAttention "layers use the attention of others: --spans or --block, --what probs|output",
    "value-residual" ValueResidual "values blended with those of layer 0: --lambda A,B",
}

/// Reads an option that is text although a value of it may look like a number.
pub(super) fn text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Option::<Value>::deserialize(deserializer)? {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text),
        Some(other) => Some(other.to_string()),
    })
}

impl Step {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.transform().name()
    }
    /// Applies it.
    ///
    /// # Errors
    /// As [`Transform::apply`].
    pub fn apply(&self, checkpoint: &mut Checkpoint, aid: &Aid<'_>) -> Result<Vec<String>> {
        self.transform().apply(checkpoint, aid)
    }
}
