//! Nodes as the solver sees them: a Node, a NodeClaim, or both with one provider id.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};

use super::pod::PodInfo;
use super::resources::{Name, ResourceList};
use crate::api::v1::NodeClaim;
use crate::api::{annotations, conditions, labels, taints};

/// Whether the Node's `Ready` condition is True.
#[must_use]
pub fn is_ready(node: &Node) -> bool {
    let list = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    list.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// One node of the cluster state. Snapshots share it with the state, so that a snapshot of many
/// nodes costs a reference count for each.
#[derive(Clone, Debug, Default)]
pub struct StateNode(Arc<NodeView>);

impl Deref for StateNode {
    type Target = NodeView;

    fn deref(&self) -> &NodeView {
        &self.0
    }
}

impl From<NodeView> for StateNode {
    fn from(view: NodeView) -> Self {
        Self(Arc::new(view))
    }
}

impl DerefMut for StateNode {
    /// Copies the node on the first write if others share it: a snapshot must not change while the
    /// state goes on.
    fn deref_mut(&mut self) -> &mut NodeView {
        let view = Arc::make_mut(&mut self.0);
        // Whoever writes may change pods or amounts, so that the sum has to be made again.
        view.free = OnceLock::new();
        view.load = OnceLock::new();
        view
    }
}

impl StateNode {
    /// True when both are the same view, and not only equal.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// What is known of one node.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// The Node, once it has joined.
    pub node: Option<Arc<Node>>,
    /// The NodeClaim, for nodes that Karpenter manages.
    pub node_claim: Option<Arc<NodeClaim>>,
    /// Pods bound to the node, finished ones left out.
    pub pods: Vec<Arc<PodInfo>>,
    /// Disruption has chosen the node. Kept in memory only, as in Karpenter.
    pub marked_for_deletion: bool,
    /// Pods are expected on the node until then.
    pub nominated_until: Option<Timestamp>,
    /// How many volumes each CSI driver that runs there can attach; nothing for one without a limit.
    /// What a driver that is not named can attach is known from the type, if at all.
    pub volume_limits: BTreeMap<String, Option<u64>>,
    /// How many pods of capacity buffers the last round placed on the node.
    pub buffer_pods: usize,
    /// No pod may be placed on it, but its pods still count for topology, and its capacity for
    /// limits.
    pub closed: bool,
    /// Volumes of the bound pods: CSI driver and `namespace/claim`.
    pub attached: Vec<(Arc<str>, Arc<str>)>,
    /// The most that the instance may turn out to have, until the NodeClaim's status says what it
    /// has. It counts towards limits, so that several launches at once cannot exceed them.
    pub expected: Option<Arc<ResourceList>>,
    /// Cache of [`NodeView::available`].
    pub free: OnceLock<ResourceList>,
    /// Cache of [`NodeView::load`].
    pub load: OnceLock<Box<Load>>,
}

/// What the pods of a node ask for, added up.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Requests of pods that are no daemons.
    pub pods: ResourceList,
    /// Their limits.
    pub pod_limits: ResourceList,
    /// Requests of pods of DaemonSets.
    pub daemons: ResourceList,
    /// Their limits.
    pub daemon_limits: ResourceList,
}

impl NodeView {
    /// The Node's name once it is registered, else the NodeClaim's.
    #[must_use]
    pub fn name(&self) -> &str {
        let node = self.node.as_ref().and_then(|n| n.metadata.name.as_deref());
        let claim = self.node_claim.as_ref().and_then(|c| c.metadata.name.as_deref());
        if self.registered() || claim.is_none() { node.or(claim) } else { claim }.unwrap_or("")
    }

    /// True when a NodeClaim stands behind the node.
    #[must_use]
    pub fn managed(&self) -> bool {
        self.node_claim.is_some()
    }

    /// Labels of the Node, or of the NodeClaim until the Node is registered, which is when
    /// Karpenter copies the claim's labels to it.
    #[must_use]
    pub fn labels(&self) -> &BTreeMap<String, String> {
        static EMPTY: BTreeMap<String, String> = BTreeMap::new();
        let node = self.node.as_ref().and_then(|n| n.metadata.labels.as_ref());
        let claim = self.node_claim.as_ref().and_then(|c| c.metadata.labels.as_ref());
        if self.registered() || !self.managed() { node.or(claim) } else { claim.or(node) }
            .unwrap_or(&EMPTY)
    }

    /// An annotation of the Node or the NodeClaim.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        let node = self.node.as_ref().and_then(|n| n.metadata.annotations.as_ref());
        let claim = self.node_claim.as_ref().and_then(|c| c.metadata.annotations.as_ref());
        node.and_then(|m| m.get(key)).or_else(|| claim.and_then(|m| m.get(key))).map(String::as_str)
    }

    fn label_is_true(&self, key: &str) -> bool {
        self.node
            .as_ref()
            .and_then(|n| n.metadata.labels.as_ref())
            .and_then(|l| l.get(key))
            .is_some_and(|v| v == "true")
    }

    /// Registered, or not managed at all.
    #[must_use]
    pub fn registered(&self) -> bool {
        if self.managed() {
            self.node.is_some() && self.label_is_true(labels::REGISTERED)
        } else {
            self.node.is_some()
        }
    }

    /// Initialized, or not managed at all.
    #[must_use]
    pub fn initialized(&self) -> bool {
        if self.managed() {
            self.node.is_some() && self.label_is_true(labels::INITIALIZED)
        } else {
            self.node.is_some()
        }
    }

    /// The NodePool's name, if any.
    #[must_use]
    pub fn node_pool(&self) -> Option<&str> {
        self.labels().get(labels::NODEPOOL).map(String::as_str)
    }

    /// Provider id of the instance.
    #[must_use]
    pub fn provider_id(&self) -> Option<&str> {
        let claim = self
            .node_claim
            .as_ref()
            .and_then(|c| c.status.as_ref())
            .and_then(|s| s.provider_id.as_deref());
        let node =
            self.node.as_ref().and_then(|n| n.spec.as_ref()).and_then(|s| s.provider_id.as_deref());
        claim.or(node)
    }

    /// The instance is being rebooted to repair the node.
    #[must_use]
    pub fn rebooting(&self) -> bool {
        let status = self.node_claim.as_ref().and_then(|c| c.status.as_ref());
        status.is_some_and(|s| conditions::is_true(&s.conditions, conditions::REBOOTING))
    }

    /// On its way out: marked, being deleted, or its instance terminating.
    #[must_use]
    pub fn deleting(&self) -> bool {
        self.marked_for_deletion || self.leaves()
    }

    /// Chosen for disruption but not yet deleted: the command may still be waiting for its
    /// replacements, and be rolled back if they fail.
    #[must_use]
    pub fn only_marked(&self) -> bool {
        self.marked_for_deletion && !self.leaves()
    }

    /// Being deleted, or its instance terminating.
    fn leaves(&self) -> bool {
        match &self.node_claim {
            Some(claim) => {
                claim.metadata.deletion_timestamp.is_some()
                    || claim.status.as_ref().is_some_and(|s| {
                        conditions::is_true(&s.conditions, conditions::INSTANCE_TERMINATING)
                    })
            }
            None => self.node.as_ref().is_some_and(|n| n.metadata.deletion_timestamp.is_some()),
        }
    }

    /// Registered once, and its Node is gone: nothing can run there any more, even if the instance
    /// still does.
    #[must_use]
    pub fn lost(&self) -> bool {
        let registered = |claim: &NodeClaim| {
            claim
                .status
                .as_ref()
                .is_some_and(|s| conditions::is_true(&s.conditions, conditions::REGISTERED))
        };
        self.node.is_none() && self.node_claim.as_deref().is_some_and(registered)
    }

    /// Taints that count for new pods. While a node starts, those that are known to go away are
    /// left out: pods may be planned onto it before it is ready.
    #[must_use]
    pub fn taints(&self) -> Vec<Taint> {
        let claim_spec = self.node_claim.as_ref().map(|c| &c.spec);
        let mut list = if self.registered() {
            self.node.as_ref().and_then(|n| n.spec.as_ref()).and_then(|s| s.taints.clone())
        } else {
            claim_spec.and_then(|s| s.taints.clone())
        }
        .unwrap_or_default();
        // A rebooting node comes back soon with the same taints as a new one. Counting its room
        // keeps Karpenter from launching a second node for its pods.
        if self.managed() && (!self.initialized() || self.rebooting()) {
            let startup = claim_spec.and_then(|s| s.startup_taints.as_deref()).unwrap_or_default();
            list.retain(|taint| {
                !taints::is_ephemeral(taint) && !startup.iter().any(|s| taints::matches(s, taint))
            });
        }
        list
    }

    /// The node's capacity, completed from the NodeClaim while the node starts. Before the launch
    /// it is the most that may come, where that is known, so that limits hold meanwhile.
    #[must_use]
    pub fn capacity(&self) -> ResourceList {
        let mut list = self.amounts(
            |n| n.status.as_ref().and_then(|s| s.capacity.as_ref()),
            |c| c.status.as_ref().and_then(|s| s.capacity.as_ref()),
        );
        if let Some(expected) = self.expected.as_deref().filter(|_| self.unlaunched()) {
            list = expected.clone();
        }
        // Karpenter counts nodes as a resource, which is how a NodePool's limits can bound their
        // number.
        list.set(Name::from("nodes"), 1);
        list
    }

    /// What the node offers to pods, completed from the NodeClaim while the node starts.
    #[must_use]
    pub fn allocatable(&self) -> ResourceList {
        self.amounts(
            |n| n.status.as_ref().and_then(|s| s.allocatable.as_ref()),
            |c| c.status.as_ref().and_then(|s| s.allocatable.as_ref()),
        )
    }

    fn amounts(
        &self,
        of_node: impl Fn(&Node) -> Option<&BTreeMap<String, super::resources::ApiQuantity>>,
        of_claim: impl Fn(&NodeClaim) -> Option<&BTreeMap<String, super::resources::ApiQuantity>>,
    ) -> ResourceList {
        let mut list =
            ResourceList::from_quantities_lossy(self.node.as_ref().and_then(|n| of_node(n)));
        // A kubelet starts with extended resources at zero until their device plugin has
        // registered. Without the NodeClaim's amounts, pods that wait for such a device would get a
        // second node.
        if self.managed() && !self.initialized() {
            let claim = ResourceList::from_quantities_lossy(
                self.node_claim.as_ref().and_then(|c| of_claim(c)),
            );
            for (name, value) in claim.iter() {
                if list.get(name) == 0 {
                    list.set(name.clone(), value);
                }
            }
        }
        list
    }

    /// What the pods ask for, for metrics. Added up once, then kept.
    pub fn load(&self) -> &Load {
        self.load.get_or_init(|| {
            let mut load = Box::<Load>::default();
            for pod in self.pods.iter().filter(|p| !p.terminal) {
                let (requests, limits) = if pod.owners.daemon_set {
                    (&mut load.daemons, &mut load.daemon_limits)
                } else {
                    (&mut load.pods, &mut load.pod_limits)
                };
                requests.add(&pod.requests);
                limits.add(&pod.limits);
            }
            load
        })
    }

    /// What is free: allocatable less the requests of all bound pods. Added up once, then kept.
    #[must_use]
    pub fn available(&self) -> &ResourceList {
        self.free.get_or_init(|| {
            let mut left = self.allocatable();
            for pod in self.pods.iter().filter(|p| !p.terminal) {
                left.sub(&pod.requests);
            }
            left
        })
    }

    /// A NodeClaim that has no instance yet.
    #[must_use]
    pub fn unlaunched(&self) -> bool {
        self.node.is_none() && self.node_claim.is_some() && self.provider_id().is_none()
    }

    /// Blocks voluntary disruption by annotation.
    #[must_use]
    pub fn do_not_disrupt(&self) -> bool {
        self.annotation(annotations::DO_NOT_DISRUPT) == Some("true")
    }
}
