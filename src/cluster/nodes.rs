//! Nodes and NodeClaims, joined by provider id into one view each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Resource as _;

use super::{Change, Inner, State, is_older};
use crate::api::labels;
use crate::api::v1::NodeClaim;
use crate::scheduling::node::{NodeView, StateNode};

/// What a view is about. NodeClaims come before Nodes without one, each in order of their names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Claim(String),
    Node(String),
}

/// One view for each NodeClaim, and for each Node without one.
#[derive(Default)]
pub(super) struct Views {
    all: BTreeMap<Key, StateNode>,
    by_pool: HashMap<String, BTreeSet<Key>>,
}

impl Views {
    fn set(&mut self, key: Key, view: Option<StateNode>) {
        let before = match &view {
            Some(view) => self.all.insert(key.clone(), view.clone()),
            None => self.all.remove(&key),
        };
        let pool_of = |view: &Option<StateNode>| view.as_ref()?.node_pool().map(str::to_owned);
        reindex(&mut self.by_pool, &key, pool_of(&before).as_deref(), pool_of(&view).as_deref());
    }
}

pub(super) fn claim_id(claim: &NodeClaim) -> Option<&str> {
    claim.status.as_ref()?.provider_id.as_deref().filter(|id| !id.is_empty())
}

pub(super) fn node_id(node: &Node) -> Option<&str> {
    node.spec.as_ref()?.provider_id.as_deref().filter(|id| !id.is_empty())
}

fn pool_of(claim: &NodeClaim) -> Option<&str> {
    claim.metadata.labels.as_ref()?.get(labels::NODEPOOL).map(String::as_str)
}

/// Moves an entry in an index.
fn reindex<T: Clone + Ord>(
    index: &mut HashMap<String, BTreeSet<T>>,
    entry: &T,
    before: Option<&str>,
    after: Option<&str>,
) {
    if before == after {
        return;
    }
    if let Some(key) = before
        && let Some(entries) = index.get_mut(key)
    {
        entries.remove(entry);
        if entries.is_empty() {
            index.remove(key);
        }
    }
    if let Some(key) = after {
        index.entry(key.to_owned()).or_default().insert(entry.clone());
    }
}

impl State {
    /// Takes in a Node.
    pub fn apply_node(&self, node: Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let taken = {
            let mut inner = self.write();
            let older = is_older(inner.nodes.get(&name).map(|n| n.meta()), &node.metadata);
            if !older {
                inner.put_node(&name, Some(Arc::new(node)));
            }
            !older
        };
        if taken {
            self.publish(Change::Node(name));
        }
    }

    /// Forgets a Node.
    pub fn delete_node(&self, name: &str) {
        self.write().put_node(name, None);
        self.publish(Change::Node(name.to_owned()));
    }

    /// Takes in a NodeClaim; one of another provider is not kept.
    pub fn apply_claim(&self, claim: NodeClaim) {
        let name = claim.metadata.name.clone().unwrap_or_default();
        if !claim.is_managed() {
            return self.delete_claim(&name);
        }
        if self.write().forward_claim(&name, claim) {
            self.publish(Change::NodeClaim(name));
        }
    }

    /// Takes in what this process just wrote, if the claim is still known. Controllers are woken here:
    /// the watch brings the same version, which is no change any more.
    pub fn announce_claim(&self, claim: NodeClaim) {
        let name = claim.metadata.name.clone().unwrap_or_default();
        let kept = {
            let mut inner = self.write();
            inner.claims.contains_key(&name) && inner.forward_claim(&name, claim)
        };
        if kept {
            self.publish(Change::NodeClaim(name));
        }
    }

    /// Forgets a NodeClaim.
    pub fn delete_claim(&self, name: &str) {
        let known = {
            let mut inner = self.write();
            // A NodeClaim of the same name may come again, and must not inherit the marks.
            inner.nominated.remove(name);
            inner.marked.remove(name);
            inner.deleted.remove(name);
            let known = inner.claims.contains_key(name);
            inner.put_claim(name, None);
            known
        };
        if known {
            self.publish(Change::NodeClaim(name.to_owned()));
        }
    }

    /// Records that this process has deleted a NodeClaim; true the first time.
    pub fn note_deletion(&self, name: &str) -> bool {
        let mut inner = self.write();
        !inner.claims.contains_key(name) || inner.deleted.insert(name.to_owned())
    }

    /// Expects pods on a node until then, so that it is left alone.
    pub fn nominate(&self, name: &str, until: Timestamp) {
        let mut inner = self.write();
        inner.nominated.insert(name.to_owned(), until);
        inner.show_claim(name);
    }

    /// Marks NodeClaims that disruption has chosen.
    pub fn mark_for_deletion(&self, claims: &[String]) {
        let mut inner = self.write();
        inner.marked.extend(claims.iter().cloned());
        claims.iter().for_each(|name| inner.show_claim(name));
    }

    /// Takes marks back.
    pub fn unmark_for_deletion(&self, claims: &[String]) {
        let mut inner = self.write();
        for name in claims {
            inner.marked.remove(name);
            inner.show_claim(name);
        }
    }

    /// The Node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.inner.read().nodes.get(name).cloned()
    }

    /// The Node of that name if it is this provider's: by the label that names its node class, or by
    /// its NodeClaim. Nobody may write or delete another one.
    #[must_use]
    pub fn managed_node(&self, name: &str) -> Option<Arc<Node>> {
        let inner = self.inner.read();
        let node = inner.nodes.get(name)?;
        let labelled =
            node.metadata.labels.as_ref().is_some_and(|l| l.contains_key(labels::EC2NODECLASS));
        let claimed = || node_id(node).is_some_and(|id| inner.claims_by_id.contains_key(id));
        (labelled || claimed()).then(|| Arc::clone(node))
    }

    /// Every Node, also those that do not count yet.
    #[must_use]
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.inner.read().nodes.values().cloned().collect()
    }

    /// Names of all Nodes.
    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        self.inner.read().nodes.keys().cloned().collect()
    }

    /// Nodes with a provider id.
    #[must_use]
    pub fn nodes_by_provider_id(&self, provider_id: &str) -> Vec<Arc<Node>> {
        let inner = self.inner.read();
        let names = inner.nodes_by_id.get(provider_id).into_iter().flatten();
        names.filter_map(|name| inner.nodes.get(name).cloned()).collect()
    }

    /// The NodeClaim with a provider id.
    #[must_use]
    pub fn claim_by_provider_id(&self, provider_id: &str) -> Option<Arc<NodeClaim>> {
        let inner = self.inner.read();
        let name = inner.claims_by_id.get(provider_id)?.first()?;
        inner.claims.get(name).cloned()
    }

    /// The NodeClaims of a NodePool, in order.
    #[must_use]
    pub fn claims_of_pool(&self, pool: &str) -> Vec<Arc<NodeClaim>> {
        let inner = self.inner.read();
        let names = inner.claims_by_pool.get(pool).into_iter().flatten();
        names.filter_map(|name| inner.claims.get(name).cloned()).collect()
    }

    /// The NodeClaims that name a node class, in order.
    #[must_use]
    pub fn claims_of_class(&self, class: &str) -> Vec<Arc<NodeClaim>> {
        let inner = self.inner.read();
        let names = inner.claims_by_class.get(class).into_iter().flatten();
        names.filter_map(|name| inner.claims.get(name).cloned()).collect()
    }

    /// Nodes and NodeClaims joined by provider id, with their pods.
    #[must_use]
    pub fn state_nodes(&self) -> Vec<StateNode> {
        self.inner.read().views.all.values().cloned().collect()
    }

    /// Those of a NodePool, by the label.
    #[must_use]
    pub fn state_nodes_of(&self, pool: &str) -> Vec<StateNode> {
        let inner = self.inner.read();
        let keys = inner.views.by_pool.get(pool).into_iter().flatten();
        keys.filter_map(|key| inner.views.all.get(key).cloned()).collect()
    }

    /// The Node or NodeClaim of that name, joined with its counterpart.
    #[must_use]
    pub fn state_node(&self, name: &str) -> Option<StateNode> {
        let inner = self.inner.read();
        let claim = match inner.nodes.get(name) {
            Some(node) => node_id(node).and_then(|id| inner.claims_by_id.get(id)?.first()),
            None => inner.claims.get_key_value(name).map(|(name, _)| name),
        };
        let key = claim.map_or_else(|| Key::Node(name.to_owned()), |c| Key::Claim(c.clone()));
        inner.views.all.get(&key).cloned()
    }
}

impl Inner {
    pub(super) fn put_node(&mut self, name: &str, node: Option<Arc<Node>>) {
        let known = self.nodes.get(name).cloned();
        let (before, after) =
            (known.as_deref().and_then(node_id), node.as_deref().and_then(node_id));
        // The index first: the views below are found through it.
        reindex(&mut self.nodes_by_id, &name.to_owned(), before, after);
        let after = after.map(str::to_owned);
        match node {
            Some(node) => self.nodes.insert(name.to_owned(), node),
            None => self.nodes.remove(name),
        };
        self.show_node(name);
        // A Node that changed or lost its provider id leaves the view of one NodeClaim and enters
        // another's.
        for id in [before, after.as_deref()].into_iter().flatten() {
            self.show_id(id);
        }
    }

    /// Keeps a NodeClaim unless a newer one is known; true when it was kept.
    pub(super) fn forward_claim(&mut self, name: &str, claim: NodeClaim) -> bool {
        let older = is_older(self.claims.get(name).map(|c| c.meta()), &claim.metadata);
        if !older {
            self.put_claim(name, Some(Arc::new(claim)));
        }
        !older
    }

    fn put_claim(&mut self, name: &str, claim: Option<Arc<NodeClaim>>) {
        let known = self.claims.get(name).cloned();
        let (old, new) = (known.as_deref(), claim.as_deref());
        let entry = name.to_owned();
        let ids = (old.and_then(claim_id), new.and_then(claim_id));
        reindex(&mut self.claims_by_id, &entry, ids.0, ids.1);
        reindex(&mut self.claims_by_pool, &entry, old.and_then(pool_of), new.and_then(pool_of));
        let class = |c: Option<&NodeClaim>| c.map(|c| c.spec.node_class_ref.name.clone());
        let (from, to) = (class(old), class(new));
        reindex(&mut self.claims_by_class, &entry, from.as_deref(), to.as_deref());
        if new.is_none() || ids.1.is_some() {
            self.launching.settle(name);
        }
        let ids = [ids.0.map(str::to_owned), ids.1.map(str::to_owned)];
        match claim {
            Some(claim) => self.claims.insert(entry, claim),
            None => self.claims.remove(name),
        };
        self.show_claim(name);
        for id in ids.into_iter().flatten() {
            self.show_id(&id);
        }
    }

    /// Brings the views of an instance's NodeClaims and Nodes up to date.
    fn show_id(&mut self, id: &str) {
        for name in self.claims_by_id.get(id).cloned().into_iter().flatten() {
            self.show_claim(&name);
        }
        for name in self.nodes_by_id.get(id).cloned().into_iter().flatten() {
            self.show_node(&name);
        }
    }

    /// Brings the view that shows a Node's pods and volumes up to date.
    pub(super) fn show_pods_of(&mut self, node: &str) {
        let id = self.nodes.get(node).and_then(|n| node_id(n)).map(str::to_owned);
        match id.filter(|id| self.claims_by_id.contains_key(id)) {
            Some(id) => self.show_id(&id),
            None => self.show_node(node),
        }
    }

    /// Brings the view of a NodeClaim up to date.
    pub(super) fn show_claim(&mut self, name: &str) {
        let view = self.claims.contains_key(name).then(|| self.of_claim(name).into());
        self.views.set(Key::Claim(name.to_owned()), view);
    }

    /// Brings the view of a Node without a NodeClaim up to date.
    fn show_node(&mut self, name: &str) {
        let claimed = self
            .nodes
            .get(name)
            .and_then(|n| node_id(n))
            .is_some_and(|id| self.claims_by_id.contains_key(id));
        let view = if claimed { None } else { self.of_node(name) };
        self.views.set(Key::Node(name.to_owned()), view.map(Into::into));
    }

    /// A NodeClaim with its Node, as far as that one counts already.
    fn of_claim(&self, name: &str) -> NodeView {
        let claim = self.claims.get(name);
        let node = claim
            // Several Nodes of one instance occur when it registered again under another name.
            .and_then(|c| self.nodes_by_id.get(claim_id(c)?)?.last())
            .filter(|node| self.counts(node));
        let mut view = NodeView {
            node_claim: claim.cloned(),
            marked_for_deletion: self.marked.contains(name),
            nominated_until: self.nominated.get(name).copied(),
            expected: self.launching.expected(name),
            ..NodeView::default()
        };
        if let Some(id) = claim.and_then(|c| claim_id(c)) {
            view.buffer_pods = self.buffer_nodes.get(id).copied().unwrap_or(0);
        }
        self.add_node(&mut view, node);
        view
    }

    /// A Node without a NodeClaim, if it counts already.
    fn of_node(&self, name: &str) -> Option<NodeView> {
        let (name, _) = self.nodes.get_key_value(name).filter(|(name, _)| self.counts(name))?;
        let mut view = NodeView::default();
        self.add_node(&mut view, Some(name));
        Some(view)
    }

    fn add_node(&self, view: &mut NodeView, name: Option<&String>) {
        let Some(name) = name else { return };
        view.node = self.nodes.get(name).cloned();
        view.pods = self.pods.on(name).to_vec();
        self.volumes.fill_in(view);
    }

    /// A Node of a pool does not count before it says which instance it is, and of which type.
    fn counts(&self, name: &str) -> bool {
        let Some(node) = self.nodes.get(name) else { return false };
        let label = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key));
        label(labels::NODEPOOL).is_none()
            || (node_id(node).is_some()
                && (label(labels::INITIALIZED).is_some() || label(labels::INSTANCE_TYPE).is_some()))
    }
}

#[cfg(test)]
mod tests;
