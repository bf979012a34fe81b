//! The objects of a scenario that bear on its pods and instance types.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, PersistentVolume, PersistentVolumeClaim, PodTemplate, PodTemplateSpec,
    ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{
    DeviceClass, ResourceClaim, ResourceClaimSpec, ResourceClaimTemplate, ResourceSlice,
};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{ScenarioError, read};
use crate::api::autoscaling::CapacityBuffer;
use crate::api::v1alpha1::NodeOverlay;
use crate::assemble::{Inputs, Overlays, PoolOffer};
use crate::scheduling::buffer;
use crate::scheduling::default_spread::Selectors;
use crate::scheduling::dra;
use crate::scheduling::dra::claim::{Claim, ClaimSource, generated_name};
use crate::scheduling::overlay::{self, PoolTypes, Verdict};
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::volumes::VolumeObjects;

/// Which kinds of objects count.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gates {
    /// NodeOverlays.
    pub(super) overlays: bool,
    /// CapacityBuffers.
    pub(super) buffers: bool,
}

/// Objects by what reads them.
#[derive(Default)]
pub(super) struct Objects {
    /// Group, kind, namespace and name of each.
    seen: HashSet<(String, String, String, String)>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pdbs: Vec<Arc<PodDisruptionBudget>>,
    volumes: VolumeObjects,
    volume_claims: Vec<PersistentVolumeClaim>,
    /// When the default StorageClass was made, and its name.
    default_class: Option<(Option<Timestamp>, String)>,
    selectors: Selectors,
    dynamic: dra::Objects,
    /// What claims made from templates ask for, by namespace and name of the template.
    claim_templates: HashMap<(String, String), ResourceClaimSpec>,
    overlays: Vec<Arc<NodeOverlay>>,
    buffers: Vec<(String, CapacityBuffer)>,
    /// By kind, namespace and name: pods' shape, and replicas where there are any.
    shapes: HashMap<(&'static str, String, String), (PodTemplateSpec, Option<i32>)>,
}

/// A thing that the scenario names and that has no effect, and why.
pub(super) struct LeftOut {
    pub(super) what: String,
    pub(super) why: String,
}

impl Objects {
    /// Takes in an object; a kind that nothing reads is passed over.
    pub(super) fn add(&mut self, path: &str, object: Value) -> Result<(), ScenarioError> {
        let Some(kind) = object["kind"].as_str().map(str::to_owned) else {
            return Err(ScenarioError::new(format!("{path}.kind"), "expected an object's kind"));
        };
        let meta = &object["metadata"];
        let Some(name) = meta["name"].as_str().filter(|n| !n.is_empty()) else {
            return Err(ScenarioError::new(format!("{path}.metadata.name"), "expected a name"));
        };
        let namespace = meta["namespace"].as_str().unwrap_or_default();
        let group = object["apiVersion"].as_str().and_then(|v| v.rsplit_once('/'));
        let group = group.map_or("", |(group, _)| group).to_owned();
        // With the group, because kinds of other groups may share a name; without the version,
        // because an object has one identity in all of its versions.
        let whole = (group, kind.clone(), namespace.to_owned(), name.to_owned());
        if !self.seen.insert(whole) {
            let message = format!("second {kind} {name:?}");
            return Err(ScenarioError::new(format!("{path}.metadata.name"), message));
        }
        match kind.as_str() {
            "Namespace" => {
                let namespace: Namespace = typed(path, object)?;
                let name = namespace.metadata.name.unwrap_or_default();
                self.namespaces.insert(name, namespace.metadata.labels.unwrap_or_default());
            }
            "PodDisruptionBudget" => self.pdbs.push(Arc::new(typed(path, object)?)),
            "PersistentVolumeClaim" => self.volume_claims.push(typed(path, object)?),
            "PersistentVolume" => {
                self.volumes.set_volume(&typed::<PersistentVolume>(path, object)?);
            }
            "StorageClass" => self.add_class(&typed::<StorageClass>(path, object)?),
            "CSINode" => self.volumes.set_csi_node(&typed::<CSINode>(path, object)?),
            "ResourceSlice" => self.dynamic.set_slice(&typed::<ResourceSlice>(path, object)?),
            "DeviceClass" => self.dynamic.set_class(&typed::<DeviceClass>(path, object)?),
            "ResourceClaim" => self.dynamic.set_claim(&typed::<ResourceClaim>(path, object)?),
            "ResourceClaimTemplate" => {
                let found: ResourceClaimTemplate = typed(path, object)?;
                self.claim_templates.insert(key(&found.metadata), found.spec.spec);
            }
            "NodeOverlay" => self.overlays.push(Arc::new(typed(path, object)?)),
            "CapacityBuffer" => self.buffers.push((path.to_owned(), typed(path, object)?)),
            _ => self.add_workload(path, &kind, object)?,
        }
        Ok(())
    }

    fn add_workload(&mut self, path: &str, kind: &str, object: Value) -> Result<(), ScenarioError> {
        match kind {
            "PodTemplate" => {
                let found: PodTemplate = typed(path, object)?;
                let (namespace, name) = key(&found.metadata);
                let shape = (found.template.unwrap_or_default(), None);
                self.shapes.insert(("PodTemplate", namespace, name), shape);
            }
            // No selector: the pods of a Deployment belong to its ReplicaSets, and default spread
            // goes by the controller of a pod.
            "Deployment" => {
                let found: Deployment = typed(path, object)?;
                let (namespace, name) = key(&found.metadata);
                let spec = found.spec.unwrap_or_default();
                let shape = (spec.template, Some(spec.replicas.unwrap_or(1)));
                self.shapes.insert(("Deployment", namespace, name), shape);
            }
            "StatefulSet" => {
                let found: StatefulSet = typed(path, object)?;
                let (namespace, name) = key(&found.metadata);
                let spec = found.spec.unwrap_or_default();
                let place = (namespace.clone(), name.clone());
                self.selectors.stateful_sets.insert(place, spec.selector);
                let shape = (spec.template, Some(spec.replicas.unwrap_or(1)));
                self.shapes.insert(("StatefulSet", namespace, name), shape);
            }
            "ReplicaSet" => {
                let found: ReplicaSet = typed(path, object)?;
                let (namespace, name) = key(&found.metadata);
                let spec = found.spec.unwrap_or_default();
                let place = (namespace.clone(), name.clone());
                self.selectors.replica_sets.insert(place, spec.selector);
                let shape = (spec.template.unwrap_or_default(), Some(spec.replicas.unwrap_or(1)));
                self.shapes.insert(("ReplicaSet", namespace, name), shape);
            }
            "Service" => {
                let found: Service = typed(path, object)?;
                if let Some(selector) = found.spec.and_then(|s| s.selector) {
                    self.selectors.services.insert(key(&found.metadata), selector);
                }
            }
            "ReplicationController" => {
                let found: ReplicationController = typed(path, object)?;
                if let Some(selector) = found.spec.and_then(|s| s.selector) {
                    let place = key(&found.metadata);
                    self.selectors.replication_controllers.insert(place, selector);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Adds the objects to what a decision depends on; returns what has no effect.
    pub(super) fn give(mut self, inputs: &mut Inputs, gates: Gates) -> Vec<LeftOut> {
        let mut left_out = Vec::new();
        // Before volumes are filled in: which class a claim has decides where its volume may be.
        self.default_classes();
        if gates.overlays {
            let (store, refused) = judge(&inputs.node_pools, &self.overlays);
            // Without the gate the inputs keep their default, which is: no overlays.
            inputs.overlays = Overlays::InForce(Arc::new(store));
            left_out.extend(refused);
        }
        if gates.buffers {
            for (path, buffer) in &self.buffers {
                match self.virtual_pods(buffer) {
                    Ok(pods) => inputs.buffer_pods.extend(pods),
                    Err(why) => left_out.push(LeftOut { what: path.clone(), why }),
                }
            }
        }
        let bound = inputs.nodes.iter().flat_map(|n| &n.pods);
        let dynamic =
            self.device_objects(inputs.pods.iter().chain(&inputs.buffer_pods).chain(bound));
        inputs.dynamic = Arc::new(dynamic);
        for node in &mut inputs.nodes {
            self.volumes.fill_in(&mut *node);
        }
        inputs.volumes = Arc::new(self.volumes);
        inputs.selectors = Arc::new(self.selectors);
        inputs.namespaces = self.namespaces;
        inputs.pdbs = self.pdbs;
        left_out
    }

    /// Claims that name no class get the default one, as the API server would give it to them.
    fn default_classes(&mut self) {
        let class = self.default_class.as_ref().map(|(_, name)| name.clone());
        for mut claim in std::mem::take(&mut self.volume_claims) {
            let spec = claim.spec.get_or_insert_default();
            if spec.volume_name.is_none() && spec.storage_class_name.is_none() {
                spec.storage_class_name.clone_from(&class);
            }
            self.volumes.set_claim(&claim);
        }
    }

    fn add_class(&mut self, class: &StorageClass) {
        const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
        let marks = class.metadata.annotations.as_ref();
        if marks.and_then(|a| a.get(DEFAULT)).is_some_and(|v| v == "true") {
            // Of several the newest counts.
            let made = class.metadata.creation_timestamp.as_ref().map(|t| t.0);
            let name = class.metadata.name.clone().unwrap_or_default();
            self.default_class = self.default_class.take().max(Some((made, name)));
        }
        self.volumes.set_class(class);
    }

    /// Devices and claims; those that pods name templates for are made as Kubernetes would.
    fn device_objects<'a>(&self, pods: impl Iterator<Item = &'a Arc<PodInfo>>) -> dra::Objects {
        let mut objects = self.dynamic.clone();
        for pod in pods {
            for entry in pod.device_claims() {
                let ClaimSource::Template(template) = &entry.source else { continue };
                let place = (pod.key.namespace.to_string(), template.to_string());
                let Some(spec) = self.claim_templates.get(&place) else { continue };
                let name = generated_name(&pod.key.name, &entry.name);
                let key = PodKey::new(&pod.key.namespace, &name);
                let made = || Arc::new(Claim::from_spec(key.clone(), spec));
                // A recorded cluster has the claim itself, with what was allocated.
                objects.claims.entry(key.clone()).or_insert_with(made);
            }
        }
        objects
    }

    fn virtual_pods(&self, buffer: &CapacityBuffer) -> Result<Vec<Arc<PodInfo>>, String> {
        let (namespace, _) = key(&buffer.metadata);
        let (kind, name) = match (&buffer.spec.pod_template_ref, &buffer.spec.scalable_ref) {
            (Some(reference), _) => ("PodTemplate", &reference.name),
            (None, Some(reference)) => {
                let kinds = ["Deployment", "StatefulSet", "ReplicaSet"];
                let kind = kinds.into_iter().find(|k| *k == reference.kind);
                let kind = kind.ok_or_else(|| {
                    format!(
                        "unsupported scalableRef kind {:?}, expected one of {}",
                        reference.kind,
                        kinds.join(", ")
                    )
                })?;
                (kind, &reference.name)
            }
            (None, None) => return Err("neither podTemplateRef nor scalableRef is set".to_owned()),
        };
        let (template, replicas) = self
            .shapes
            .get(&(kind, namespace, name.clone()))
            .ok_or_else(|| format!("{kind} {name:?} not found"))?;
        let count = buffer::replicas(&buffer.spec, *replicas, template);
        Ok(buffer::virtual_pods(buffer, template, count))
    }
}

fn typed<T: DeserializeOwned>(path: &str, value: Value) -> Result<T, ScenarioError> {
    read::strict(value, path)
}

/// Namespace and name.
fn key(meta: &kube::api::ObjectMeta) -> (String, String) {
    // As kubectl does for a manifest without a namespace.
    let namespace = meta.namespace.clone().unwrap_or_else(|| "default".to_owned());
    (namespace, meta.name.clone().unwrap_or_default())
}

/// What overlays make of the pools' instance types, and which of them are not in force.
fn judge(pools: &[PoolOffer], overlays: &[Arc<NodeOverlay>]) -> (overlay::Store, Vec<LeftOut>) {
    let pools: Vec<PoolTypes> = pools
        .iter()
        .map(|offer| PoolTypes {
            pool: Arc::clone(&offer.node_pool),
            types: offer.instance_types.clone().unwrap_or_default(),
        })
        .collect();
    let (store, verdicts) = overlay::evaluate(overlays, &pools);
    let refused = verdicts.into_iter().filter_map(|(name, verdict)| {
        let why = match verdict {
            Verdict::Applied => return None,
            Verdict::Invalid(why) => why,
            Verdict::Conflict => "conflict with another overlay".to_owned(),
        };
        Some(LeftOut { what: format!("NodeOverlay {name}"), why })
    });
    (store, refused.collect())
}
