//! Models of pictures, and of pictures and texts.

mod assemble;
mod clip;
mod families;
mod recipe;

use super::super::registry::Class;
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
    Class::new("BeitModel", "beit", |f| families::beit(f, Model)),
    Class::new("BeitForImageClassification", "beit", |f| families::beit(f, Image)),
    Class::new("CLIPModel", "clip", |f| clip::read(f, clip::Family::Clip)),
    Class::new("SiglipModel", "siglip", |f| clip::read(f, clip::Family::Siglip)),
];
