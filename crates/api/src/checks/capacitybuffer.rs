//! CapacityBuffers.

use super::Finding;
use crate::autoscaling::CapacityBuffer;

/// Checks that a CapacityBuffer says what its room is for.
#[must_use]
pub fn check(buffer: &CapacityBuffer) -> Vec<Finding> {
    let spec = &buffer.spec;
    if spec.pod_template_ref.is_some() || spec.scalable_ref.is_some() {
        return Vec::new();
    }
    let message = "expected podTemplateRef or scalableRef: without either nothing is kept free";
    vec![Finding::new("spec", message)]
}
