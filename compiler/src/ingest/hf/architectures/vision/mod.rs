//! Models of pictures, and of pictures and texts.

mod assemble;
mod clip;
mod families;
mod recipe;
mod swin;
mod texts;

use super::super::registry::Class;
use clip::Family::{Clip, Siglip};
use families::Kind::{Image, Model, Teacher};

/// Class, `model_type` and reader.
pub(super) const CLASSES: &[Class] = &[
    Class::new("ViTModel", "vit", |f| families::vit(f, Model)),
    Class::new("ViTForImageClassification", "vit", |f| families::vit(f, Image)),
    Class::new("DeiTModel", "deit", |f| families::deit(f, Model)),
    Class::new("DeiTForImageClassification", "deit", |f| families::deit(f, Image)),
    Class::new("DeiTForImageClassificationWithTeacher", "deit", |f| families::deit(f, Teacher)),
    Class::new("Dinov2Model", "dinov2", |f| families::dinov2(f, Model)),
    Class::new("Dinov2ForImageClassification", "dinov2", |f| families::dinov2(f, Image)),
    Class::new("Dinov2WithRegistersModel", "dinov2_with_registers", |f| families::dinov2_with_registers(f, Model)),
    Class::new("Dinov2WithRegistersForImageClassification", "dinov2_with_registers", |f| {
        families::dinov2_with_registers(f, Image)
    }),
    Class::new("BeitModel", "beit", |f| families::beit(f, Model)),
    Class::new("BeitForImageClassification", "beit", |f| families::beit(f, Image)),
    Class::new("SwinModel", "swin", |f| swin::read(f, Model)),
    Class::new("SwinForImageClassification", "swin", |f| swin::read(f, Image)),
    Class::new("CLIPModel", "clip", |f| clip::read(f, Clip)),
    Class::new("CLIPForImageClassification", "clip", |f| clip::pictures(f, Clip, clip::Kind::Labels)),
    Class::new("CLIPVisionModel", "clip_vision_model", |f| clip::pictures(f, Clip, clip::Kind::Model)),
    Class::new("CLIPVisionModelWithProjection", "clip_vision_model", |f| {
        clip::pictures(f, Clip, clip::Kind::Projected)
    }),
    Class::new("CLIPTextModel", "clip_text_model", |f| texts::read(f, Clip, false)),
    Class::new("CLIPTextModelWithProjection", "clip_text_model", |f| texts::read(f, Clip, true)),
    Class::new("SiglipModel", "siglip", |f| clip::read(f, Siglip)),
    Class::new("SiglipForImageClassification", "siglip", |f| clip::pictures(f, Siglip, clip::Kind::Labels)),
    Class::new("SiglipVisionModel", "siglip_vision_model", |f| clip::pictures(f, Siglip, clip::Kind::Model)),
    Class::new("SiglipTextModel", "siglip_text_model", |f| texts::read(f, Siglip, true)),
];
