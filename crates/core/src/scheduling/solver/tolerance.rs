//! Lists of tolerations and taints as numbers, and which go together.

use k8s_openapi::api::core::v1::{Taint, Toleration};
use rustc_hash::FxHashMap;

use crate::scheduling::solver::ids::{List, TaintsId, TolerationsId};
use crate::scheduling::taints::tolerate_all;

/// No taints.
pub(super) const UNTAINTED: TaintsId = TaintsId::FIRST;

/// Lists that were seen, and answers that were given.
pub(super) struct Tolerance {
    tolerations: List<TolerationsId, Vec<Toleration>>,
    taints: List<TaintsId, Vec<Taint>>,
    answers: FxHashMap<(TolerationsId, TaintsId), bool>,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self {
            tolerations: List::default(),
            taints: vec![Vec::new()].into(),
            answers: FxHashMap::default(),
        }
    }
}

impl Tolerance {
    /// The number of a list of tolerations.
    pub(super) fn tolerations(&mut self, list: &[Toleration]) -> TolerationsId {
        let known = self.tolerations.position(|l| l == list);
        known.unwrap_or_else(|| self.tolerations.push(list.to_vec()))
    }

    /// The number of a list of taints.
    pub(super) fn taints(&mut self, list: &[Taint]) -> TaintsId {
        let known = self.taints.position(|l| l == list);
        known.unwrap_or_else(|| self.taints.push(list.to_vec()))
    }

    /// Whether every taint is tolerated.
    pub(super) fn tolerates(&mut self, tolerations: TolerationsId, taints: TaintsId) -> bool {
        taints == UNTAINTED
            || *self.answers.entry((tolerations, taints)).or_insert_with(|| {
                tolerate_all(&self.taints[taints], &self.tolerations[tolerations]).is_ok()
            })
    }
}
