//! The CustomResourceDefinitions, made from the Rust types.
//!
//! The derived schemas give fields, types and descriptions; what Rust types cannot say, such as
//! patterns, defaults, list types and CEL rules, is laid over them by path.

use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::v1;

mod capacitybuffer;
mod ec2nodeclass;
#[cfg(test)]
pub(crate) mod maximal;
mod nodeclaim;
mod nodeoverlay;
mod nodepool;
mod overlay;
mod rules;
#[cfg(test)]
mod tests;

/// The only annotation of Karpenter's definitions: the generator whose form they have.
const GENERATOR: &str = "controller-gen.kubebuilder.io/version";
/// The version that Karpenter 1.14 names, so that tools which compare the two see no difference.
const GENERATOR_VERSION: &str = "v0.20.1";

/// One version of a kind.
struct Version {
    name: &'static str,
    schema: Value,
    columns: Value,
    storage: bool,
}

/// Every definition with the name of its file.
#[must_use]
pub fn all() -> Vec<(&'static str, Value)> {
    vec![
        (
            "autoscaling.x-k8s.io_capacitybuffers.yaml",
            definition(&super::autoscaling::CapacityBuffer::crd(), capacitybuffer::versions()),
        ),
        (
            "karpenter.k8s.aws_ec2nodeclasses.yaml",
            definition(&v1::EC2NodeClass::crd(), ec2nodeclass::versions()),
        ),
        ("karpenter.sh_nodeclaims.yaml", definition(&v1::NodeClaim::crd(), nodeclaim::versions())),
        (
            "karpenter.sh_nodeoverlays.yaml",
            definition(&super::v1alpha1::NodeOverlay::crd(), nodeoverlay::versions()),
        ),
        ("karpenter.sh_nodepools.yaml", definition(&v1::NodePool::crd(), nodepool::versions())),
    ]
}

/// A definition as YAML, keys in the order in which people read them.
///
/// # Panics
/// Never for the definitions of [`all`].
#[must_use]
pub fn to_yaml(definition: &Value) -> String {
    format!("---\n{}", serde_saphyr::to_string(definition).unwrap_or_default())
}

/// The schema that a type derives, without what only Rust needs.
fn derived<K: CustomResourceExt>() -> Value {
    let crd = serde_json::to_value(K::crd()).unwrap_or_default();
    let mut schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    overlay::tidy(&mut schema);
    let properties = &mut schema["properties"];
    properties["apiVersion"] = json!({"type": "string", "description":
        "Versioned schema of this representation of the object."});
    properties["kind"] =
        json!({"type": "string", "description": "The REST resource that this object is."});
    properties["metadata"] = json!({"type": "object"});
    schema["type"] = json!("object");
    schema
}

/// Puts names and versions together; several versions are converted by the webhook.
fn definition(
    crd: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    versions: Vec<Version>,
) -> Value {
    let crd = serde_json::to_value(crd).unwrap_or_default();
    let spec = &crd["spec"];
    let mut names = json!({
        "categories": spec["names"]["categories"],
        "kind": spec["names"]["kind"],
        "listKind": format!("{}List", spec["names"]["kind"].as_str().unwrap_or_default()),
        "plural": spec["names"]["plural"],
    });
    if let Some(short) = spec["names"]["shortNames"].as_array().filter(|s| !s.is_empty()) {
        names["shortNames"] = json!(short);
    }
    names["singular"] = spec["names"]["singular"].clone();
    // With one version there is nothing to convert, so the definition works without a webhook.
    let converted = versions.len() > 1;
    let versions: Vec<Value> = versions
        .into_iter()
        .map(|v| {
            let mut subresources = json!({"status": {}});
            // For `kubectl scale nodepool`, which sets `replicas` of a static pool.
            if v.storage && spec["names"]["plural"] == "nodepools" {
                subresources["scale"] = json!({"specReplicasPath": ".spec.replicas",
                    "statusReplicasPath": ".status.nodes"});
            }
            let mut version = json!({
                "additionalPrinterColumns": v.columns,
                "name": v.name,
                "schema": {"openAPIV3Schema": v.schema},
                "served": true,
                "storage": v.storage,
                "subresources": subresources,
            });
            if version["additionalPrinterColumns"].as_array().is_none_or(Vec::is_empty)
                && let Some(version) = version.as_object_mut()
            {
                version.shift_remove("additionalPrinterColumns");
            }
            version
        })
        .collect();
    let mut definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"annotations": {GENERATOR: GENERATOR_VERSION}, "name": crd["metadata"]["name"]},
        "spec": {"group": spec["group"], "names": names, "scope": spec["scope"],
            "versions": versions},
    });
    if converted {
        definition["spec"]["conversion"] = json!({
            "strategy": "Webhook",
            "webhook": {
                "clientConfig": {"service": {
                    // The chart's defaults; the running controller writes its own address and CA
                    // over them.
                    "name": "karpenter",
                    "namespace": "kube-system",
                    "path": super::conversion::path_of(spec["group"].as_str().unwrap_or_default()),
                    "port": 8443,
                }},
                "conversionReviewVersions": super::conversion::REVIEW_VERSIONS,
            },
        });
    }
    definition
}

/// A printer column.
fn column(name: &str, kind: &str, path: &str, priority: i32) -> Value {
    let mut column = json!({"jsonPath": path, "name": name, "type": kind});
    if priority > 0 {
        column["priority"] = json!(priority);
    }
    column
}

const READY_PATH: &str = r#".status.conditions[?(@.type=="Ready")].status"#;
const AGE_PATH: &str = ".metadata.creationTimestamp";
