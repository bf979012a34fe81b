//! Lists of tolerations and taints as numbers, and which go together.

use k8s_openapi::api::core::v1::{Taint, Toleration};
use rustc_hash::FxHashMap;

use crate::scheduling::taints::tolerate_all;

/// A list of tolerations.
pub(super) type TolerationsId = u32;
/// A list of taints; 0 is the empty one.
pub(super) type TaintsId = u32;

/// Lists that were seen, and answers that were given.
pub(super) struct Tolerance {
    tolerations: Vec<Vec<Toleration>>,
    taints: Vec<Vec<Taint>>,
    answers: FxHashMap<(TolerationsId, TaintsId), bool>,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { tolerations: Vec::new(), taints: vec![Vec::new()], answers: FxHashMap::default() }
    }
}

impl Tolerance {
    /// The number of a list of tolerations.
    pub(super) fn tolerations(&mut self, list: &[Toleration]) -> TolerationsId {
        let at = self.tolerations.iter().position(|l| l == list).unwrap_or_else(|| {
            self.tolerations.push(list.to_vec());
            self.tolerations.len() - 1
        });
        at as TolerationsId
    }

    /// The number of a list of taints.
    pub(super) fn taints(&mut self, list: &[Taint]) -> TaintsId {
        let at = self.taints.iter().position(|l| l == list).unwrap_or_else(|| {
            self.taints.push(list.to_vec());
            self.taints.len() - 1
        });
        at as TaintsId
    }

    /// Whether every taint is tolerated.
    pub(super) fn tolerates(&mut self, tolerations: TolerationsId, taints: TaintsId) -> bool {
        taints == 0
            || *self.answers.entry((tolerations, taints)).or_insert_with(|| {
                tolerate_all(&self.taints[taints as usize], &self.tolerations[tolerations as usize])
                    .is_ok()
            })
    }
}
