//! The constraints that a pod's volumes put on its node: where they can be attached, how many a
//! driver attaches, and whether the claims can be used at all.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};

use super::node::NodeView;
use super::pod::PodInfo;
use super::requirements::{Requirement, Requirements};
use crate::api::labels;
use crate::api::v1::Operator;

/// The driver to which Kubernetes' CSI migration redirects in-tree EBS volumes.
const EBS_DRIVER: &str = "ebs.csi.aws.com";
/// Set by kube-controller-manager once claim and volume point at each other. Until then the claim
/// counts as unbound.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

/// What the volumes of one pod ask of the node that it goes to.
///
/// A pod without an entry has no volume that matters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodVolumes {
    /// Where the volumes can be: any one of these, tried in order. Empty means anywhere.
    pub alternatives: Vec<Requirements>,
    /// Volumes that count against a driver's limit: the CSI driver and `namespace/claim`.
    pub attached: Vec<(Arc<str>, Arc<str>)>,
    /// A look-up failed, so that the volume count of existing nodes is unknown and none of them may
    /// take the pod in this round. New nodes are still tried, as in Karpenter.
    pub tracking_failed: bool,
}

impl PodVolumes {
    /// True when the volumes ask for nothing.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.alternatives.is_empty() && self.attached.is_empty() && !self.tracking_failed
    }
}

/// What matters of a PersistentVolumeClaim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    volume: Option<Arc<str>>,
    class: Option<Arc<str>>,
    lost: bool,
    deleting: bool,
    bind_completed: bool,
}

/// What matters of a PersistentVolume.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Volume {
    driver: Option<Arc<str>>,
    /// Where it can be: any one of these.
    terms: Vec<Requirements>,
    deleting: bool,
}

/// What matters of a StorageClass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Class {
    driver: Arc<str>,
    immediate: bool,
    /// Where its volumes can be: any one of these.
    terms: Vec<Requirements>,
}

/// The cluster's claims, volumes, classes and driver limits, as far as scheduling reads them.
#[derive(Clone, Debug, Default)]
pub struct VolumeObjects {
    /// By `namespace/name`.
    claims: HashMap<Arc<str>, Arc<Claim>>,
    volumes: HashMap<Arc<str>, Arc<Volume>>,
    classes: HashMap<Arc<str>, Arc<Class>>,
    /// By Node name: how many volumes each driver that runs there attaches, if it says so.
    limits: HashMap<Arc<str>, Arc<BTreeMap<String, Option<u64>>>>,
}

/// Why a pod's claims cannot be used or looked up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// There is no such claim.
    #[error("getting persistent volume claim, PersistentVolumeClaim {0:?} not found")]
    NoClaim(String),
    /// The claim is being deleted.
    #[error("persistentvolumeclaim is being deleted")]
    ClaimDeleting,
    /// The claim's volume was lost.
    #[error("persistentvolumeclaim bound to non-existent persistentvolume")]
    Lost,
    /// There is no such volume.
    #[error("failed to validate pvc, PersistentVolume {0:?} not found")]
    NoVolume(String),
    /// The volume is being deleted.
    #[error("failed to validate pvc, persistentvolume is being deleted")]
    VolumeDeleting,
    /// The binding was not finished.
    #[error("pvc is considered unbound because it does not contain annotation")]
    NotBound,
    /// Nothing says how the claim is to get a volume.
    #[error("unbound pvc must define a storage class")]
    NoClassName,
    /// There is no such class.
    #[error("failed to validate pvc, failed to get storage class, StorageClass {0:?} not found")]
    NoClass(String),
    /// The volume has to be there before the pod.
    #[error("failed to validate pvc, pvc with immediate volume binding mode must be bound")]
    Immediate,
}

/// Some look-ups failed; what the others gave is in `volumes`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{error}")]
pub struct Unresolved {
    /// The first failure.
    pub error: VolumeError,
    /// What is known besides. It asks for no place, because the places of only some volumes would
    /// mislead.
    pub volumes: PodVolumes,
}

impl VolumeObjects {
    /// Takes in a PersistentVolumeClaim.
    pub fn set_claim(&mut self, object: &PersistentVolumeClaim) {
        let meta = &object.metadata;
        let text = |t: Option<&String>| t.filter(|t| !t.is_empty()).map(|t| Arc::from(t.as_str()));
        let spec = object.spec.as_ref();
        let claim = Claim {
            volume: text(spec.and_then(|s| s.volume_name.as_ref())),
            class: text(spec.and_then(|s| s.storage_class_name.as_ref())),
            lost: object.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Lost")),
            deleting: meta.deletion_timestamp.is_some(),
            bind_completed: meta
                .annotations
                .as_ref()
                .is_some_and(|a| a.contains_key(BIND_COMPLETED)),
        };
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        let key = claim_key(namespace, meta.name.as_deref().unwrap_or_default());
        self.claims.insert(Arc::from(key), Arc::new(claim));
    }

    /// Namespaces and names of the claims that are bound to a volume, in no order.
    pub fn claims_on<'a>(&'a self, volume: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let bound = |claim: &Claim| claim.volume.as_deref() == Some(volume);
        let claims = self.claims.iter().filter(move |(_, claim)| bound(claim));
        claims.filter_map(|(key, _)| key.split_once('/'))
    }

    /// Forgets a PersistentVolumeClaim.
    pub fn remove_claim(&mut self, namespace: &str, name: &str) {
        self.claims.remove(claim_key(namespace, name).as_str());
    }

    /// The PersistentVolume that a claim is bound to.
    #[must_use]
    pub fn volume_of(&self, namespace: &str, claim: &str) -> Option<&str> {
        self.claims.get(claim_key(namespace, claim).as_str())?.volume.as_deref()
    }

    /// Takes in a PersistentVolume.
    pub fn set_volume(&mut self, object: &PersistentVolume) {
        let spec = object.spec.as_ref();
        let csi = spec.and_then(|s| s.csi.as_ref()).map(|c| Arc::from(c.driver.as_str()));
        let in_tree =
            spec.and_then(|s| s.aws_elastic_block_store.as_ref()).map(|_| Arc::from(EBS_DRIVER));
        // A volume on a node's own disk asks for that node by host name, which no new node can
        // have. As in Karpenter, the host name is ignored for such volumes.
        let on_host = spec.is_some_and(|s| s.local.is_some() || s.host_path.is_some());
        let terms = spec
            .and_then(|s| s.node_affinity.as_ref())
            .and_then(|a| a.required.as_ref())
            .map(|r| r.node_selector_terms.as_slice())
            .unwrap_or_default();
        let terms = terms
            .iter()
            // A term without expressions selects no node in Kubernetes, and so is no alternative.
            .filter_map(|t| t.match_expressions.as_ref().filter(|e| !e.is_empty()))
            .map(|expressions| {
                let kept = expressions.iter().filter(|e| !on_host || e.key != labels::HOSTNAME);
                Requirements::from_expressions(kept)
            })
            .collect();
        let deleting = object.metadata.deletion_timestamp.is_some();
        let volume = Volume { driver: csi.or(in_tree), terms, deleting };
        let name = object.metadata.name.as_deref().unwrap_or_default();
        self.volumes.insert(Arc::from(name), Arc::new(volume));
    }

    /// Forgets a PersistentVolume.
    pub fn remove_volume(&mut self, name: &str) {
        self.volumes.remove(name);
    }

    /// Takes in a StorageClass.
    pub fn set_class(&mut self, object: &StorageClass) {
        let terms = object
            .allowed_topologies
            .iter()
            .flatten()
            .filter_map(|t| t.match_label_expressions.as_ref().filter(|e| !e.is_empty()))
            .map(|expressions| {
                expressions
                    .iter()
                    .map(|e| Requirement::new(&e.key, Operator::In, &e.values))
                    .collect()
            })
            .collect();
        let class = Class {
            driver: Arc::from(csi_name(&object.provisioner)),
            immediate: object.volume_binding_mode.as_deref() == Some("Immediate"),
            terms,
        };
        let name = object.metadata.name.as_deref().unwrap_or_default();
        self.classes.insert(Arc::from(name), Arc::new(class));
    }

    /// Forgets a StorageClass.
    pub fn remove_class(&mut self, name: &str) {
        self.classes.remove(name);
    }

    /// Takes in a CSINode: how many volumes each driver attaches to the Node of its name.
    pub fn set_csi_node(&mut self, object: &CSINode) {
        let limits: BTreeMap<String, Option<u64>> = object
            .spec
            .drivers
            .iter()
            .map(|driver| {
                let count = driver.allocatable.as_ref().and_then(|a| a.count);
                (driver.name.clone(), count.map(|count| u64::try_from(count).unwrap_or(0)))
            })
            .collect();
        let name = object.metadata.name.as_deref().unwrap_or_default();
        // Before a driver registers, the CSINode lists none: that says nothing about the node's
        // limits.
        if limits.is_empty() {
            self.limits.remove(name);
        } else {
            self.limits.insert(Arc::from(name), Arc::new(limits));
        }
    }

    /// Forgets a CSINode.
    pub fn remove_csi_node(&mut self, name: &str) {
        self.limits.remove(name);
    }

    /// How many volumes each driver on a Node attaches there; a driver without a limit has `None`.
    #[must_use]
    pub fn limits(&self, node: &str) -> Option<&BTreeMap<String, Option<u64>>> {
        self.limits.get(node).map(|l| &**l)
    }

    /// Records on a node how many volumes it can attach, and which ones it has.
    pub fn fill_in(&self, node: &mut NodeView) {
        let name = node.node.as_ref().and_then(|n| n.metadata.name.as_deref());
        if let Some(limits) = name.and_then(|name| self.limits(name)) {
            node.volume_limits.clone_from(limits);
        }
        if node.pods.iter().any(|pod| !pod.claims.is_empty()) {
            node.attached = self.attached(&node.pods);
        }
    }

    /// The volumes of a node's pods that count against some limit: driver and `namespace/claim`.
    #[must_use]
    pub fn attached(&self, pods: &[Arc<PodInfo>]) -> Vec<(Arc<str>, Arc<str>)> {
        let mut list: Vec<_> = pods
            .iter()
            .flat_map(|pod| pod.claims.iter().map(move |name| (pod, name)))
            .filter_map(|(pod, name)| {
                let key = claim_key(&pod.key.namespace, name);
                let (id, claim) = self.claims.get_key_value(key.as_str())?;
                Some((self.driver(claim).ok()??, Arc::clone(id)))
            })
            .collect();
        list.sort_unstable();
        // A claim that several pods of the node share is attached once.
        list.dedup();
        list
    }

    /// The CSI driver that attaches a claim's volume, if one is known.
    fn driver(&self, claim: &Claim) -> Result<Option<Arc<str>>, VolumeError> {
        match (&claim.volume, &claim.class) {
            (Some(name), _) => match self.volumes.get(name) {
                Some(volume) => Ok(volume.driver.clone()),
                None => Err(VolumeError::NoVolume(name.to_string())),
            },
            // A claim without a volume yet will get one from its class's driver. A missing class is
            // no error here: `places` reports it.
            (None, Some(class)) => Ok(self.classes.get(class).map(|c| Arc::clone(&c.driver))),
            (None, None) => Ok(None),
        }
    }

    /// Where a claim's volume can be: any one of these; anywhere when there is none.
    fn places(&self, claim: &Claim) -> Result<&[Requirements], VolumeError> {
        match (&claim.volume, &claim.class) {
            (Some(name), _) => match self.volumes.get(name) {
                Some(volume) => Ok(&volume.terms),
                None => Err(VolumeError::NoVolume(name.to_string())),
            },
            (None, Some(name)) => match self.classes.get(name) {
                Some(class) => Ok(&class.terms),
                None => Err(VolumeError::NoClass(name.to_string())),
            },
            (None, None) => Ok(&[]),
        }
    }
}

fn claim_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// The CSI driver to which Kubernetes' CSI migration redirects an in-tree provisioner; other names
/// stay as they are. Limits are published under the CSI name.
fn csi_name(provisioner: &str) -> &str {
    match provisioner {
        "kubernetes.io/aws-ebs" => EBS_DRIVER,
        "kubernetes.io/gce-pd" => "pd.csi.storage.gke.io",
        "kubernetes.io/azure-disk" => "disk.csi.azure.com",
        "kubernetes.io/azure-file" => "file.csi.azure.com",
        "kubernetes.io/cinder" => "cinder.csi.openstack.org",
        "kubernetes.io/vsphere-volume" => "csi.vsphere.vmware.com",
        "kubernetes.io/portworx-volume" => "pxd.portworx.com",
        "kubernetes.io/rbd" => "rbd.csi.ceph.com",
        other => other,
    }
}

/// Finds out what a pod's volumes ask of its node.
///
/// # Errors
/// When a claim, its volume or its class does not exist; the error holds what is known besides.
pub fn resolve(pod: &PodInfo, objects: &VolumeObjects) -> Result<PodVolumes, Unresolved> {
    let mut volumes = PodVolumes::default();
    let mut places: Vec<&[Requirements]> = Vec::new();
    let mut failure = None;
    for name in &pod.claims {
        let key = claim_key(&pod.key.namespace, name);
        let Some((id, claim)) = objects.claims.get_key_value(key.as_str()) else {
            failure.get_or_insert(VolumeError::NoClaim(name.to_string()));
            continue;
        };
        match objects.driver(claim) {
            Ok(Some(driver)) => volumes.attached.push((driver, Arc::clone(id))),
            Ok(None) => {}
            Err(_) => volumes.tracking_failed = true,
        }
        match objects.places(claim) {
            Ok(list) => places.push(list),
            Err(error) => {
                failure.get_or_insert(error);
            }
        }
    }
    match failure {
        None => {
            volumes.alternatives = combine(&places);
            Ok(volumes)
        }
        Some(error) => Err(Unresolved { error, volumes }),
    }
}

/// Every way to choose one place per volume such that all agree. When none does, every combination
/// is kept, so that scheduling fails with the contradiction instead of ignoring it.
fn combine(places: &[&[Requirements]]) -> Vec<Requirements> {
    let mut ways: Vec<Requirements> = Vec::new();
    for list in places.iter().filter(|l| !l.is_empty()) {
        if ways.is_empty() {
            ways = distinct(list.iter().cloned());
            continue;
        }
        let pairs = || ways.iter().flat_map(|w| list.iter().map(move |p| (w, p)));
        let merged = |(way, place): (&Requirements, &Requirements)| {
            let mut both = way.clone();
            both.merge(place);
            both
        };
        let mut next = distinct(pairs().filter(|(w, p)| w.intersects(p).is_ok()).map(merged));
        if next.is_empty() {
            next = distinct(pairs().map(merged));
        }
        ways = next;
    }
    // A single alternative without requirements is the same as none, and quicker to check.
    if ways.len() == 1 && ways[0].is_empty() { Vec::new() } else { ways }
}

fn distinct(items: impl Iterator<Item = Requirements>) -> Vec<Requirements> {
    let mut list: Vec<Requirements> = Vec::new();
    for item in items {
        if !list.contains(&item) {
            list.push(item);
        }
    }
    list
}

/// Checks that a pod's claims are bound, or will be bound once the pod has a node.
///
/// # Errors
/// The first claim's problem.
pub fn validate(pod: &PodInfo, objects: &VolumeObjects) -> Result<(), VolumeError> {
    for name in &pod.claims {
        let key = claim_key(&pod.key.namespace, name);
        let claim = objects
            .claims
            .get(key.as_str())
            .ok_or_else(|| VolumeError::NoClaim(name.to_string()))?;
        if claim.deleting {
            return Err(VolumeError::ClaimDeleting);
        }
        if claim.lost {
            return Err(VolumeError::Lost);
        }
        match &claim.volume {
            Some(volume) => validate_bound(claim, volume, objects)?,
            None => validate_unbound(claim, objects)?,
        }
    }
    Ok(())
}

fn validate_bound(claim: &Claim, name: &str, objects: &VolumeObjects) -> Result<(), VolumeError> {
    let volume = objects.volumes.get(name).ok_or_else(|| VolumeError::NoVolume(name.to_owned()))?;
    if volume.deleting {
        return Err(VolumeError::VolumeDeleting);
    }
    if !claim.bind_completed {
        return Err(VolumeError::NotBound);
    }
    Ok(())
}

fn validate_unbound(claim: &Claim, objects: &VolumeObjects) -> Result<(), VolumeError> {
    // The API server has filled in the default class, so that a claim without one waits for a
    // volume that somebody makes by hand.
    let name = claim.class.as_ref().ok_or(VolumeError::NoClassName)?;
    let class = objects.classes.get(name).ok_or_else(|| VolumeError::NoClass(name.to_string()))?;
    // With immediate binding the volume's zone is not known before it is bound, and a node launched
    // now may be in another one. With `WaitForFirstConsumer` the volume follows the pod.
    if class.immediate { Err(VolumeError::Immediate) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn pod(claims: &[&str]) -> PodInfo {
        let volumes: Vec<Value> = claims
            .iter()
            .map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}}))
            .collect();
        PodInfo::from_pod(&read(json!({"metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [], "volumes": volumes}})))
    }

    fn claim(objects: &mut VolumeObjects, name: &str, volume: Option<&str>, class: Option<&str>) {
        objects.set_claim(&read(json!({"metadata": {"name": name, "namespace": "n",
            "annotations": {BIND_COMPLETED: "yes"}},
            "spec": {"volumeName": volume, "storageClassName": class}})));
    }

    fn volume(objects: &mut VolumeObjects, name: &str, zones: &[&str], extra: Value) {
        let terms: Vec<Value> = zones
            .iter()
            .map(|z| {
                json!({"matchExpressions": [
                    {"key": "topology.ebs.csi.aws.com/zone", "operator": "In", "values": [z]}]})
            })
            .collect();
        let mut spec = json!({"csi": {"driver": EBS_DRIVER, "volumeHandle": "v"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        objects.set_volume(&read(json!({"metadata": {"name": name}, "spec": spec})));
    }

    fn class(objects: &mut VolumeObjects, name: &str, mode: Option<&str>, zones: &[&str]) {
        objects.set_class(&read(json!({"metadata": {"name": name},
            "provisioner": "kubernetes.io/aws-ebs", "volumeBindingMode": mode,
            "allowedTopologies": [{"matchLabelExpressions": [
                {"key": "topology.kubernetes.io/zone", "values": zones}]}]})));
    }

    fn shown(list: &[Requirements]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_bound_claim_ties_its_pod_to_the_volume() {
        let mut objects = VolumeObjects::default();
        claim(&mut objects, "c", Some("v"), None);
        volume(&mut objects, "v", &["a"], json!({}));
        let found = resolve(&pod(&["c"]), &objects).unwrap();
        assert_eq!(shown(&found.alternatives), ["topology.kubernetes.io/zone In [a]"]);
        assert_eq!(found.attached, [(Arc::from(EBS_DRIVER), Arc::from("n/c"))]);
        validate(&pod(&["c"]), &objects).unwrap();
    }

    #[test]
    fn an_unbound_claim_goes_by_its_class() {
        let mut objects = VolumeObjects::default();
        claim(&mut objects, "c", None, Some("s"));
        class(&mut objects, "s", Some("WaitForFirstConsumer"), &["a", "b"]);
        let found = resolve(&pod(&["c"]), &objects).unwrap();
        assert_eq!(shown(&found.alternatives), ["topology.kubernetes.io/zone In [a b]"]);
        assert_eq!(&*found.attached[0].0, EBS_DRIVER);
        validate(&pod(&["c"]), &objects).unwrap();
    }

    #[test]
    fn only_ways_that_go_together_are_kept() {
        let mut objects = VolumeObjects::default();
        claim(&mut objects, "c", Some("v"), None);
        claim(&mut objects, "d", Some("w"), None);
        volume(&mut objects, "v", &["a", "b"], json!({}));
        volume(&mut objects, "w", &["b", "c"], json!({}));
        let found = resolve(&pod(&["c", "d"]), &objects).unwrap();
        assert_eq!(shown(&found.alternatives), ["topology.kubernetes.io/zone In [b]"]);
        volume(&mut objects, "w", &["c"], json!({}));
        let found = resolve(&pod(&["c", "d"]), &objects).unwrap();
        assert_eq!(shown(&found.alternatives), ["topology.kubernetes.io/zone DoesNotExist"]);
    }

    #[test]
    fn a_local_volume_does_not_ask_for_its_host() {
        let mut objects = VolumeObjects::default();
        claim(&mut objects, "c", Some("v"), None);
        let host = json!({"csi": null, "local": {"path": "/x"}, "nodeAffinity": {"required": {
            "nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["h"]}]}]}}});
        volume(&mut objects, "v", &[], host);
        assert!(resolve(&pod(&["c"]), &objects).unwrap().is_free());
    }

    #[test]
    fn failed_look_ups_are_distinguished() {
        let mut objects = VolumeObjects::default();
        let missing = resolve(&pod(&["c"]), &objects).unwrap_err();
        assert!(!missing.volumes.tracking_failed);
        assert_eq!(
            missing.to_string(),
            "getting persistent volume claim, PersistentVolumeClaim \"c\" not found"
        );
        claim(&mut objects, "c", Some("gone"), None);
        assert!(resolve(&pod(&["c"]), &objects).unwrap_err().volumes.tracking_failed);
    }

    #[test]
    fn claims_that_cannot_be_used_are_named() {
        let mut objects = VolumeObjects::default();
        let error = |objects: &VolumeObjects| validate(&pod(&["c"]), objects).unwrap_err();
        claim(&mut objects, "c", None, None);
        assert_eq!(error(&objects), VolumeError::NoClassName);
        claim(&mut objects, "c", None, Some("s"));
        assert_eq!(error(&objects), VolumeError::NoClass("s".into()));
        class(&mut objects, "s", Some("Immediate"), &[]);
        assert_eq!(error(&objects), VolumeError::Immediate);
        claim(&mut objects, "c", Some("v"), None);
        assert_eq!(error(&objects), VolumeError::NoVolume("v".into()));
        volume(&mut objects, "v", &[], json!({}));
        objects.set_claim(&read(json!({"metadata": {"name": "c", "namespace": "n"},
            "spec": {"volumeName": "v"}})));
        assert_eq!(error(&objects), VolumeError::NotBound);
        objects.set_claim(&read(json!({"metadata": {"name": "c", "namespace": "n"},
            "status": {"phase": "Lost"}})));
        assert_eq!(error(&objects), VolumeError::Lost);
    }

    #[test]
    fn a_claim_shared_by_pods_counts_once() {
        let mut objects = VolumeObjects::default();
        claim(&mut objects, "c", Some("v"), None);
        volume(&mut objects, "v", &["a"], json!({}));
        let pods = [Arc::new(pod(&["c"])), Arc::new(pod(&["c"]))];
        assert_eq!(objects.attached(&pods).len(), 1);
        objects.set_csi_node(&read(json!({"metadata": {"name": "x"}, "spec": {"drivers": [
            {"name": EBS_DRIVER, "nodeID": "x", "allocatable": {"count": 25}},
            {"name": "other", "nodeID": "x"}]}})));
        assert_eq!(objects.limits("x").unwrap().get(EBS_DRIVER), Some(&Some(25)));
        assert_eq!(objects.limits("x").unwrap().get("other"), Some(&None));
    }
}
