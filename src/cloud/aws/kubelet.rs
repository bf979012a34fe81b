//! `spec.kubelet`: what it may contain, and what of it reaches a node.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::ami::AmiFamily;
use super::launchtemplate::Cluster;
use crate::api::v1::{EC2NodeClass, KUBELET_FIELDS};
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::quantity;
use crate::scheduling::resources::{ApiQuantity, Name};

mod check;
mod schema;

pub use self::check::check;

/// The two maps whose values may be expressions.
const RESERVED: [&str; 2] = ["kubeReserved", "systemReserved"];

/// Settings of the kubelet on a type: the pod limit, reservations and DNS address filled in.
#[must_use]
pub fn resolve(cluster: &Cluster, class: &EC2NodeClass, kind: &InstanceType) -> Map<String, Value> {
    let mut settings = class.spec.kubelet.clone().unwrap_or_default();
    // Absent or an expression. The capacity of the type was worked out from it, so that the node
    // and the scheduler agree.
    if !settings.get("maxPods").is_some_and(Value::is_i64) {
        settings.insert("maxPods".to_owned(), kind.capacity.get(&Name::Pods).into());
    }
    let overhead = [&kind.overhead.kube_reserved, &kind.overhead.system_reserved];
    for (key, amounts) in RESERVED.into_iter().zip(overhead) {
        if let Some(Value::Object(map)) = settings.get_mut(key) {
            if cluster.kubelet_expressions {
                evaluated(map, &amounts.to_quantities());
            }
            map.retain(|_, amount| !is_expression(amount));
            if map.is_empty() {
                settings.remove(key);
            }
        }
    }
    let has_dns =
        settings.get("clusterDNS").and_then(Value::as_array).is_some_and(|l| !l.is_empty());
    if let (false, Some(ip)) = (has_dns, &cluster.dns_ip) {
        settings.insert("clusterDNS".to_owned(), json!([ip]));
    }
    settings
}

/// Puts what the type's overhead was worked out with in the place of expressions.
fn evaluated(map: &mut Map<String, Value>, amounts: &BTreeMap<String, ApiQuantity>) {
    for (name, text) in map.iter_mut().filter(|(_, text)| is_expression(text)) {
        if let Some(amount) = amounts.get(name) {
            *text = Value::String(amount.0.clone());
        }
    }
}

fn is_expression(amount: &Value) -> bool {
    amount.as_str().is_some_and(|text| quantity::parse(text).is_err())
}

/// The expressions of a node class, each with the field it stands in.
#[must_use]
pub fn expressions(class: &EC2NodeClass) -> Vec<(String, String)> {
    let Some(settings) = &class.spec.kubelet else { return Vec::new() };
    let mut found = Vec::new();
    if let Some(Value::String(text)) = settings.get("maxPods") {
        found.push(("spec.kubelet.maxPods".to_owned(), text.clone()));
    }
    for key in RESERVED {
        let map = settings.get(key).and_then(Value::as_object);
        for (name, amount) in map.into_iter().flatten().filter(|(_, v)| is_expression(v)) {
            let text = amount.as_str().unwrap_or_default().to_owned();
            found.push((format!("spec.kubelet.{key}[{name}]"), text));
        }
    }
    found
}

/// What of `spec.kubelet` the family would not pass on to its nodes, if anything.
#[must_use]
pub fn unsupported(class: &EC2NodeClass) -> Option<String> {
    let family = AmiFamily::of(class);
    // AL2023 passes the whole configuration to the kubelet (nodeadm), and the user data of Custom
    // is the user's own.
    if matches!(family, AmiFamily::Custom | AmiFamily::Al2023) {
        return None;
    }
    let settings = class.spec.kubelet.as_ref()?;
    let name = family.as_str();
    let mut problems = Vec::new();
    let dropped = |key: &str| {
        !KUBELET_FIELDS.contains(&key) || (key == "podsPerCore" && !family.features().pods_per_core)
    };
    let mut fields: Vec<&str> =
        settings.keys().map(String::as_str).filter(|key| dropped(key)).collect();
    fields.sort_unstable();
    if !fields.is_empty() {
        problems.push(format!(
            "spec.kubelet has fields not applied by the {name} AMI family that would be silently dropped: {}",
            fields.join(", ")
        ));
    }
    let addresses = settings.get("clusterDNS").and_then(Value::as_array).map_or(0, Vec::len);
    if addresses > 1 {
        problems.push(format!(
            "spec.kubelet.clusterDNS: the {name} AMI family doesn't accept multiple entries, only one, but {addresses} were set"
        ));
    }
    (!problems.is_empty()).then(|| problems.join("; "))
}

#[cfg(test)]
mod tests;
