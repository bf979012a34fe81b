//! What a pod's volumes ask of a node.

use std::sync::Arc;

use super::requirements::Requirements;

/// What the volumes of one pod ask of the node that it goes to.
///
/// Absent for a pod means that it has no volume that matters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodVolumes {
    /// Where the volumes can be: any one of these, tried in order. Empty means anywhere.
    pub alternatives: Vec<Requirements>,
    /// Volumes that count against a driver's limit: the CSI driver and `namespace/claim`.
    pub attached: Vec<(Arc<str>, Arc<str>)>,
    /// A look-up failed, so that no existing node may take the pod in this round.
    pub tracking_failed: bool,
}
