//! NodeClaims that have no instance yet: what they are for, and how long decisions wait for them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::nodes::claim_id;
use super::{Change, Inner, State};
use crate::api::conditions;
use crate::api::labels;
use crate::api::v1::NodeClaim;
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::resources::ResourceList;

/// Decisions wait this long for the instance of a new NodeClaim: a launch takes two or three
/// seconds, and what it brings may take the pods that came meanwhile. A launch that takes longer,
/// or failed, delays nothing else.
const PATIENCE: Duration = Duration::from_secs(10);
/// Reason of `Launched` before the first attempt is over.
const NOT_TRIED: &str = "AwaitingReconciliation";

/// What a NodeClaim without an instance was made for.
struct Purpose {
    pods: Vec<PodKey>,
    most: Arc<ResourceList>,
}

/// NodeClaims that this process made and that have no instance yet.
#[derive(Default)]
pub(super) struct Launching {
    claims: HashMap<String, Purpose>,
    /// The NodeClaim that each of their pods is meant for.
    promised: HashMap<PodKey, String>,
}

impl Launching {
    fn begin(&mut self, claim: &str, pods: &[PodKey], most: ResourceList) {
        for pod in pods {
            self.promised.insert(pod.clone(), claim.to_owned());
        }
        let purpose = Purpose { pods: pods.to_vec(), most: Arc::new(most) };
        self.claims.insert(claim.to_owned(), purpose);
    }

    /// The claim has its instance, or is gone: its pods are as free as any others.
    pub(super) fn settle(&mut self, claim: &str) {
        let Some(purpose) = self.claims.remove(claim) else { return };
        for pod in purpose.pods {
            // Meanwhile the pod may have been promised another NodeClaim.
            if self.promised.get(&pod).is_some_and(|c| c == claim) {
                self.promised.remove(&pod);
            }
        }
    }

    pub(super) fn expected(&self, claim: &str) -> Option<Arc<ResourceList>> {
        self.claims.get(claim).map(|p| Arc::clone(&p.most)).filter(|list| !list.is_empty())
    }
}

impl State {
    /// Takes in a NodeClaim that was just made, before the watch shows it: the pods that it is for
    /// are not placed again, and the most that its instance may have counts towards limits, until
    /// the instance is there.
    pub fn apply_created(&self, claim: NodeClaim, pods: &[PodKey], most: ResourceList) {
        let name = claim.metadata.name.clone().unwrap_or_default();
        {
            let mut inner = self.write();
            if claim_id(&claim).is_none() {
                inner.launching.begin(&name, pods, most);
            }
            inner.forward_claim(&name, claim);
        }
        self.publish(Change::NodeClaim(name));
    }

    /// True when every watch has listed everything and no launch that was just begun is waited for.
    #[must_use]
    pub fn synced(&self, now: Timestamp) -> bool {
        let inner = self.inner.read();
        inner.listed() && !inner.claims.values().any(|claim| inner.is_awaited(claim, now))
    }

    /// Pods that wait for a node and have no NodeClaim on its way yet, in order.
    #[must_use]
    pub fn waiting_pods(&self) -> Vec<Arc<PodInfo>> {
        let mut pods = self.provisionable_pods();
        let inner = self.inner.read();
        pods.retain(|p| !inner.launching.promised.contains_key(&p.key));
        pods
    }

    /// Pods for which a NodeClaim that has no instance yet was made.
    #[must_use]
    pub fn promised_pods(&self) -> HashSet<PodKey> {
        self.inner.read().launching.promised.keys().cloned().collect()
    }
}

impl Inner {
    /// A claim whose first launch is under way. Static pools do not count: no pod waits for them.
    fn is_awaited(&self, claim: &NodeClaim, now: Timestamp) -> bool {
        if claim.metadata.deletion_timestamp.is_some() || claim_id(claim).is_some() {
            return false;
        }
        let pool = claim.metadata.labels.as_ref().and_then(|l| l.get(labels::NODEPOOL));
        let pool = pool.and_then(|name| self.pools.get(name));
        if pool.is_some_and(|p| p.spec.replicas.is_some()) {
            return false;
        }
        let status = claim.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        // After a failed attempt the wait may be long, and other pods have nothing to gain from it.
        let tried = conditions::get(status, conditions::LAUNCHED)
            .is_some_and(|c| c.status != conditions::TRUE && c.reason != NOT_TRIED);
        let created = claim.metadata.creation_timestamp.as_ref();
        let age = created.map(|t| now.duration_since(t.0));
        let patient = age.is_none_or(|a| Duration::try_from(a).unwrap_or_default() < PATIENCE);
        !tried && patient
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::resources::Name;
    use serde_json::{Value, json};

    const START: &str = "2026-01-01T00:00:00Z";

    fn at(seconds: u64) -> Timestamp {
        START.parse::<Timestamp>().unwrap() + Duration::from_secs(seconds)
    }

    fn listed() -> State {
        let state = State::default();
        state.list_everything();
        state
    }

    fn claim(name: &str, pool: &str, status: Value) -> NodeClaim {
        serde_json::from_value(json!({"metadata": {"name": name, "creationTimestamp": START,
            "labels": {"karpenter.sh/nodepool": pool}}, "spec": {}, "status": status}))
        .unwrap()
    }

    fn waits(name: &str) -> k8s_openapi::api::core::v1::Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n"},
            "spec": {"containers": []}, "status": {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}}))
        .unwrap()
    }

    #[test]
    fn a_launch_that_was_just_begun_holds_decisions_back_and_no_other_does() {
        let state = listed();
        assert!(state.synced(at(0)));
        state.apply_claim(claim("c", "p", json!({})));
        assert!(!state.synced(at(3)) && state.listed());
        assert!(state.synced(at(10)), "a launch that takes long holds nobody up");
        let failed = json!({"conditions": [{"type": "Launched", "status": "Unknown",
            "reason": "LaunchFailed", "message": "", "lastTransitionTime": START}]});
        state.apply_claim(claim("c", "p", failed));
        assert!(state.synced(at(3)), "a launch that failed holds nobody up");
    }

    #[test]
    fn a_claim_of_a_static_pool_holds_nobody_up() {
        let state = listed();
        state.apply_pool(
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"replicas": 2}}))
                .unwrap(),
        );
        state.apply_claim(claim("c", "p", json!({})));
        assert!(state.synced(at(0)));
    }

    #[test]
    fn pods_of_a_claim_without_an_instance_are_not_placed_again() {
        let state = listed();
        state.apply_pod(&waits("a"));
        state.apply_pod(&waits("b"));
        let key = PodKey::new("n", "a");
        let most: ResourceList = [(Name::Cpu, 4000)].into_iter().collect();
        state.apply_created(claim("c", "p", json!({})), std::slice::from_ref(&key), most);
        let names = |state: &State| -> Vec<String> {
            state.waiting_pods().iter().map(|p| p.key.name.to_string()).collect()
        };
        assert_eq!(names(&state), ["b"]);
        assert_eq!(state.state_nodes()[0].capacity().get(&Name::Cpu), 4000);
        state.apply_claim(claim("c", "p", json!({"providerID": "aws:///z/i-1"})));
        assert_eq!(names(&state), ["a", "b"]);
        assert!(!state.promised_pods().contains(&key));
        assert_eq!(state.state_nodes()[0].capacity().get(&Name::Cpu), 0);
    }

    #[test]
    fn pods_of_a_claim_that_was_given_up_are_placed_again() {
        let state = listed();
        state.apply_pod(&waits("a"));
        let key = PodKey::new("n", "a");
        state.apply_created(
            claim("c", "p", json!({})),
            std::slice::from_ref(&key),
            ResourceList::new(),
        );
        assert!(state.waiting_pods().is_empty());
        state.delete_claim("c");
        assert_eq!(state.waiting_pods().len(), 1);
    }
}
