//! Volumes: made where their first pod runs, attached while pods use them.

use std::collections::BTreeSet;

use karpenter_api::labels;
use serde_json::json;

use super::Cluster;
use crate::api::{Deletion, kind};

/// The name of the attachment of a volume to a node.
pub(super) fn attachment(volume: &str, node: &str) -> String {
    format!("csi-{volume}-{node}")
}

impl Cluster {
    /// The volume of a claim that has one.
    pub(super) fn volume_of(&self, namespace: &str, claim: &str) -> Option<String> {
        let claim = self.store.get(kind("persistentvolumeclaims"), namespace, claim)?;
        claim["spec"]["volumeName"].as_str().filter(|v| !v.is_empty()).map(str::to_owned)
    }

    /// The zones in which all of a pod's volumes are: `Some(None)` for any, `None` when a claim
    /// is missing.
    #[allow(clippy::option_option, reason = "missing and anywhere are different answers")]
    pub(super) fn volume_zones(
        &self,
        namespace: &str,
        claims: &[String],
    ) -> Option<Option<BTreeSet<String>>> {
        let mut zones: Option<BTreeSet<String>> = None;
        for claim in claims {
            self.store.get(kind("persistentvolumeclaims"), namespace, claim)?;
            let Some(volume) = self.volume_of(namespace, claim) else { continue };
            let Some(volume) = self.store.get(kind("persistentvolumes"), "", &volume) else {
                continue;
            };
            let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
            let found: BTreeSet<String> = terms
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(|t| t["matchExpressions"].as_array().into_iter().flatten())
                .filter(|e| e["key"] == labels::ZONE)
                .flat_map(|e| e["values"].as_array().into_iter().flatten())
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect();
            if !found.is_empty() {
                zones = Some(match zones {
                    Some(known) => known.intersection(&found).cloned().collect(),
                    None => found,
                });
            }
        }
        Some(zones)
    }

    /// Makes the volumes of claims that waited for their first pod.
    pub(super) fn provide_volumes(&mut self, namespace: &str, claims: &[String], node: &str) {
        // As a StorageClass with WaitForFirstConsumer: the volume is where its first pod runs, and
        // stays there.
        let zone = self.nodes.get(node).and_then(|n| n.labels.get(labels::ZONE)).cloned();
        for claim in claims {
            let kind_of = kind("persistentvolumeclaims");
            let Some(found) = self.store.get(kind_of, namespace, claim) else { continue };
            if self.volume_of(namespace, claim).is_some() {
                continue;
            }
            let name = format!("pvc-{}", found["metadata"]["uid"].as_str().unwrap_or_default());
            let volume = json!({
                "metadata": { "name": name },
                "spec": {
                    "csi": { "driver": "ebs.csi.aws.com", "volumeHandle": name },
                    "accessModes": ["ReadWriteOnce"],
                    "capacity": { "storage": "1Gi" },
                    "storageClassName": found["spec"]["storageClassName"],
                    "claimRef": { "kind": "PersistentVolumeClaim", "namespace": namespace,
                        "name": claim, "uid": found["metadata"]["uid"] },
                    "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                        { "key": labels::ZONE, "operator": "In", "values": [zone] }] }] } },
                },
            });
            let _ = self.store.create(kind("persistentvolumes"), "", volume);
            let _ = self.store.modify(kind_of, namespace, claim, "", |claim| {
                claim["spec"]["volumeName"] = json!(name);
                claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = json!("yes");
                Ok(())
            });
            let _ = self.store.modify(kind_of, namespace, claim, "status", |claim| {
                claim["status"]["phase"] = json!("Bound");
                Ok(())
            });
        }
    }

    pub(super) fn attach(&mut self, namespace: &str, claims: &[String], node: &str) {
        for claim in claims {
            let Some(volume) = self.volume_of(namespace, claim) else { continue };
            let made = json!({
                "metadata": { "name": attachment(&volume, node) },
                "spec": { "attacher": "ebs.csi.aws.com", "nodeName": node,
                    "source": { "persistentVolumeName": volume } },
                "status": { "attached": true },
            });
            let _ = self.store.create(kind("volumeattachments"), "", made);
        }
    }

    /// Detaches a volume unless a pod on the node uses it again.
    pub(super) fn detach(&mut self, name: &str) {
        let kind_of = kind("volumeattachments");
        let Some(found) = self.store.get(kind_of, "", name) else { return };
        let node = found["spec"]["nodeName"].as_str().unwrap_or_default();
        let volume = found["spec"]["source"]["persistentVolumeName"].as_str().unwrap_or_default();
        let used = self.nodes.get(node).is_some_and(|n| {
            n.pods.iter().filter_map(|k| Some((k, self.pods.get(k)?))).any(|(k, p)| {
                p.volume_claims
                    .iter()
                    .any(|c| self.volume_of(&k.namespace, c).as_deref() == Some(volume))
            })
        });
        if !used {
            let _ = self.store.delete(kind_of, "", name, &Deletion::default());
        }
    }
}
