//! Models that continue a text.

mod assemble;
pub(in crate::ingest::hf) mod gpt2;
pub(in crate::ingest::hf) mod llama;
pub(in crate::ingest::hf) mod recipe;

use super::super::registry::Class;
use llama::Family;

/// Class, `model_type` and reader.
pub(super) const CLASSES: &[Class] = &[
    Class::new("LlamaForCausalLM", "llama", |f| llama::read(f, Family::Llama)),
    Class::new("MistralForCausalLM", "mistral", |f| llama::read(f, Family::Mistral)),
    Class::new("Qwen2ForCausalLM", "qwen2", |f| llama::read(f, Family::Qwen2)),
    Class::new("Qwen3ForCausalLM", "qwen3", |f| llama::read(f, Family::Qwen3)),
    Class::new("GPT2LMHeadModel", "gpt2", gpt2::read),
];
