//! What a pod asks of its node and of its neighbours.

use std::hash::{Hash, Hasher};

use k8s_openapi::api::core::v1::{
    PodAffinityTerm, PodSpec, Toleration, TopologySpreadConstraint, WeightedPodAffinityTerm,
};

use super::HostPort;
use crate::scheduling::requirements::Requirements;

/// What a pod asks of the node and of its neighbours. Shared between pods made from one template.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Constraints {
    /// Node selector.
    pub node_selector: Requirements,
    /// Required node affinity: any one of these terms.
    pub required_terms: Vec<Requirements>,
    /// Preferred node affinity with weights, heaviest first.
    pub preferred_terms: Vec<(i32, Requirements)>,
    /// Tolerations.
    pub tolerations: Vec<Toleration>,
    /// Required pod affinity.
    pub affinity: Vec<PodAffinityTerm>,
    /// Preferred pod affinity with weights, heaviest first.
    pub preferred_affinity: Vec<(i32, PodAffinityTerm)>,
    /// Required pod anti-affinity.
    pub anti_affinity: Vec<PodAffinityTerm>,
    /// Preferred pod anti-affinity with weights, heaviest first.
    pub preferred_anti_affinity: Vec<(i32, PodAffinityTerm)>,
    /// Topology spread constraints.
    pub spread: Vec<TopologySpreadConstraint>,
    /// Host ports: protocol, address, port.
    pub host_ports: Vec<HostPort>,
}

impl Constraints {
    /// Reads a pod's constraints.
    #[must_use]
    pub fn from_spec(spec: &PodSpec) -> Self {
        let node = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        let pods = spec.affinity.as_ref().and_then(|a| a.pod_affinity.as_ref());
        let anti = spec.affinity.as_ref().and_then(|a| a.pod_anti_affinity.as_ref());
        let mut preferred_terms: Vec<(i32, Requirements)> = node
            .and_then(|n| n.preferred_during_scheduling_ignored_during_execution.as_ref())
            .into_iter()
            .flatten()
            .map(|p| (p.weight, Requirements::from_term(&p.preference)))
            .collect();
        // Heaviest first, because relaxation drops preferences from the front as Karpenter does.
        // The sort is stable: equal weights stay in the order of the manifest.
        preferred_terms.sort_by_key(|(weight, _)| -weight);
        let weighted = |list: Option<&Vec<WeightedPodAffinityTerm>>| {
            let mut terms: Vec<(i32, PodAffinityTerm)> = list
                .into_iter()
                .flatten()
                .map(|w| (w.weight, w.pod_affinity_term.clone()))
                .collect();
            terms.sort_by_key(|(weight, _)| -weight);
            terms
        };
        Self {
            node_selector: Requirements::from_labels(spec.node_selector.iter().flatten()),
            required_terms: node
                .and_then(|n| n.required_during_scheduling_ignored_during_execution.as_ref())
                .map(|s| s.node_selector_terms.iter().map(Requirements::from_term).collect())
                .unwrap_or_default(),
            preferred_terms,
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            affinity: pods
                .and_then(|p| p.required_during_scheduling_ignored_during_execution.clone())
                .unwrap_or_default(),
            preferred_affinity: weighted(
                pods.and_then(|p| p.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
            anti_affinity: anti
                .and_then(|p| p.required_during_scheduling_ignored_during_execution.clone())
                .unwrap_or_default(),
            preferred_anti_affinity: weighted(
                anti.and_then(|p| p.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
            spread: spec.topology_spread_constraints.clone().unwrap_or_default(),
            host_ports: spec
                .containers
                .iter()
                .flat_map(|c| c.ports.iter().flatten())
                .filter(|p| p.host_port.unwrap_or(0) != 0)
                .map(|p| {
                    let protocol = p.protocol.as_deref().unwrap_or("TCP");
                    let ip = p.host_ip.as_deref().unwrap_or_default();
                    HostPort::new(protocol, ip, p.host_port.unwrap_or(0))
                })
                .collect(),
        }
    }

    /// The constraints without affinity to other pods and without spread.
    #[must_use]
    pub fn without_topology(&self) -> Self {
        Self {
            affinity: Vec::new(),
            preferred_affinity: Vec::new(),
            anti_affinity: Vec::new(),
            preferred_anti_affinity: Vec::new(),
            spread: Vec::new(),
            ..self.clone()
        }
    }

    /// Node requirements without preferences: the node selector and the first required term.
    /// Karpenter tries required terms one at a time, and relaxation moves on to the next.
    #[must_use]
    pub fn strict_requirements(&self) -> Requirements {
        let mut requirements = self.node_selector.clone();
        if let Some(term) = self.required_terms.first() {
            requirements.merge(term);
        }
        requirements
    }

    /// Node requirements of each required term; the node selector alone when there is no term.
    #[must_use]
    pub fn alternatives(&self) -> Vec<Requirements> {
        if self.required_terms.is_empty() {
            return vec![self.node_selector.clone()];
        }
        let with = |term: &Requirements| {
            let mut requirements = self.node_selector.clone();
            requirements.merge(term);
            requirements
        };
        self.required_terms.iter().map(with).collect()
    }

    /// Node requirements with the heaviest preference, which counts as required until relaxed.
    #[must_use]
    pub fn requirements(&self, respect_preferences: bool) -> Requirements {
        let mut requirements = self.node_selector.clone();
        // One at a time, and as if required: the solver drops it and tries the next when it cannot
        // be met.
        if respect_preferences && let Some((_, term)) = self.preferred_terms.first() {
            requirements.merge(term);
        }
        if let Some(term) = self.required_terms.first() {
            requirements.merge(term);
        }
        requirements
    }
}

impl Hash for Constraints {
    /// Covers only what usually differs between templates and is cheap to hash: the hash is
    /// computed for each pod that is read, and equality compares everything.
    fn hash<H: Hasher>(&self, state: &mut H) {
        for requirement in self.node_selector.iter().chain(
            self.required_terms
                .iter()
                .chain(self.preferred_terms.iter().map(|(_, t)| t))
                .flat_map(Requirements::iter),
        ) {
            requirement.key().hash(state);
            requirement.values().for_each(|v| v.hash(state));
        }
        let terms = self
            .affinity
            .iter()
            .chain(self.preferred_affinity.iter().map(|(_, t)| t))
            .chain(&self.anti_affinity)
            .chain(self.preferred_anti_affinity.iter().map(|(_, t)| t));
        for term in terms {
            term.topology_key.hash(state);
            term.label_selector.iter().for_each(|s| s.match_labels.hash(state));
        }
        for spread in &self.spread {
            (spread.max_skew, &spread.topology_key, &spread.when_unsatisfiable).hash(state);
            spread.label_selector.iter().for_each(|s| s.match_labels.hash(state));
        }
        for toleration in &self.tolerations {
            (&toleration.key, &toleration.value, &toleration.effect).hash(state);
        }
        self.host_ports.iter().for_each(|p| p.port.hash(state));
    }
}

impl Eq for Constraints {}
