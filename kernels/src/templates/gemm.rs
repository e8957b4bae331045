//! Not yet written.

use super::{Rendered, TemplateError};
use crate::spec::KernelSpec;
use crate::target::Capabilities;

pub(super) fn render(spec: &KernelSpec, _caps: &Capabilities) -> Result<Rendered, TemplateError> {
    Err(TemplateError::unsupported(spec, "template not written"))
}
