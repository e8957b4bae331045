//! Models that continue a text. A family reads its configuration into a recipe, which is all there is to it.

mod alibi;
mod cohere;
mod deepseek;
mod exaone4;
mod falcon;
mod gemma;
mod glm;
pub(in crate::ingest::hf) mod gpt2;
mod gpt_bigcode;
mod gpt_neo;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod kv_fields;
mod layer_normed;
pub(in crate::ingest::hf) mod llama;
mod mixtures;
mod olmo;
mod opt;
mod phi;
mod relatives;
mod sizes;

use super::super::registry::Class;
use llama::Family;

/// Class, `model_type` and reader.
pub(super) const CLASSES: &[Class] = &[
    Class::new("LlamaForCausalLM", "llama", |f| llama::read(f, Family::Llama)),
    Class::new("LLaMAForCausalLM", "llama", |f| llama::read(f, Family::Llama)),
    Class::new("LCKVLlamaForCausalLM", "lckv-llama", |f| llama::read(f, Family::Llama)),
    Class::new("MistralForCausalLM", "mistral", |f| llama::read(f, Family::Mistral)),
    Class::new("Qwen2ForCausalLM", "qwen2", |f| llama::read(f, Family::Qwen2)),
    Class::new("Qwen3ForCausalLM", "qwen3", |f| llama::read(f, Family::Qwen3)),
    Class::new("ArceeForCausalLM", "arcee", relatives::arcee),
    Class::new("BloomForCausalLM", "bloom", alibi::bloom),
    Class::new("CodeGenForCausalLM", "codegen", gptj::codegen),
    Class::new("CohereForCausalLM", "cohere", cohere::cohere),
    Class::new("Cohere2ForCausalLM", "cohere2", cohere::cohere2),
    Class::new("DeepseekV2ForCausalLM", "deepseek_v2", deepseek::v2),
    Class::new("DeepseekV3ForCausalLM", "deepseek_v3", deepseek::v3),
    Class::new("Ernie4_5ForCausalLM", "ernie4_5", relatives::ernie),
    Class::new("Exaone4ForCausalLM", "exaone4", exaone4::read),
    Class::new("FalconForCausalLM", "falcon", falcon::read),
    Class::new("GemmaForCausalLM", "gemma", gemma::gemma),
    Class::new("Gemma2ForCausalLM", "gemma2", gemma::gemma2),
    Class::new("Gemma3ForCausalLM", "gemma3_text", gemma::gemma3),
    Class::new("Gemma3ForConditionalGeneration", "gemma3", gemma::gemma3_texts),
    Class::new("GlmForCausalLM", "glm", glm::glm),
    Class::new("Glm4ForCausalLM", "glm4", glm::glm4),
    Class::new("GPT2LMHeadModel", "gpt2", gpt2::read),
    Class::new("GPTBigCodeForCausalLM", "gpt_bigcode", gpt_bigcode::read),
    Class::new("GPTNeoForCausalLM", "gpt_neo", gpt_neo::read),
    Class::new("GPTNeoXForCausalLM", "gpt_neox", gpt_neox::read),
    Class::new("GptOssForCausalLM", "gpt_oss", gpt_oss::read),
    Class::new("GPTJForCausalLM", "gptj", gptj::gptj),
    Class::new("GraniteForCausalLM", "granite", relatives::granite),
    Class::new("GraniteMoeForCausalLM", "granitemoe", mixtures::granite),
    Class::new("HeliumForCausalLM", "helium", relatives::helium),
    Class::new("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", relatives::hunyuan),
    Class::new("MixtralForCausalLM", "mixtral", mixtures::mixtral),
    Class::new("MptForCausalLM", "mpt", alibi::mpt),
    Class::new("MPTForCausalLM", "mpt", alibi::mpt),
    Class::new("NemotronForCausalLM", "nemotron", layer_normed::nemotron),
    Class::new("OlmoForCausalLM", "olmo", olmo::olmo),
    Class::new("Olmo2ForCausalLM", "olmo2", olmo::olmo2),
    Class::new("Olmo3ForCausalLM", "olmo3", olmo::olmo3),
    Class::new("OlmoeForCausalLM", "olmoe", mixtures::olmoe),
    Class::new("OPTForCausalLM", "opt", opt::read),
    Class::new("PhiForCausalLM", "phi", phi::phi),
    Class::new("Phi3ForCausalLM", "phi3", phi::phi3),
    Class::new("Qwen2MoeForCausalLM", "qwen2_moe", mixtures::qwen2),
    Class::new("Qwen3MoeForCausalLM", "qwen3_moe", mixtures::qwen3),
    Class::new("SeedOssForCausalLM", "seed_oss", relatives::seed_oss),
    Class::new("SmolLM3ForCausalLM", "smollm3", relatives::smollm3),
    Class::new("StableLmForCausalLM", "stablelm", layer_normed::stablelm),
    Class::new("Starcoder2ForCausalLM", "starcoder2", layer_normed::starcoder2),
];
