//! Managed node groups of EKS.

use serde_json::{Value, json};

use super::answers::Answers;
use super::fields::Fields;
use super::group::{Group, Kind, Market};
use super::{autoscaling, image, template};
use crate::cloud::aws::ami::AmiFamily;

/// What EKS launches where neither group nor template names a type.
const DEFAULT_TYPE: &str = "t3.medium";
/// Hop limit of the instance metadata that EKS sets where there is no launch template; Karpenter's
/// default is 1, with which pods cannot reach it.
const HOPS: i64 = 2;
// Fields that mean nothing for new nodes.
const IGNORED: [&str; 9] = [
    "nodegroupArn",
    "createdAt",
    "modifiedAt",
    "status",
    "health",
    "resources",
    "tags",
    "updateConfig",
    "warmPoolConfig",
];
// What to do about fields that have no counterpart.
const ADVICE: [(&str, &str); 2] = [
    (
        "remoteAccess",
        "node classes have no SSH keys; use Session Manager, or add the key in user data",
    ),
    ("nodeRepairConfig", "set the feature gate NodeRepair"),
];

/// Names of the Auto Scaling groups behind a node group.
pub fn groups_behind(node_group: &Value) -> Vec<&str> {
    let list = node_group["resources"]["autoScalingGroups"].as_array();
    list.into_iter().flatten().filter_map(|g| g["name"].as_str()).collect()
}

/// Reads a managed node group.
///
/// # Errors
/// When its launch template is not in the files.
pub fn read(answers: &Answers, node_group: &Value) -> Result<Group, String> {
    let behind: Vec<_> = groups_behind(node_group)
        .into_iter()
        .filter_map(|name| autoscaling::place(answers, name))
        .collect();
    let mut fields = Fields::of(node_group.clone());
    let mut group = Group { kind: Kind::NodeGroup, ..Group::default() };
    group.name = fields.text("nodegroupName").unwrap_or_default();
    group.sources = vec![group.name.clone()];
    group.cluster = fields.text("clusterName");
    group.types = fields.texts("instanceTypes");
    sizes(&mut group, &mut fields);
    let kind = fields.text("amiType").unwrap_or_default();
    let release = fields.text("releaseVersion").unwrap_or_default();
    let kubernetes = fields.text("version").unwrap_or_default();
    image::of_type(&mut group, &kind, &release, &kubernetes);
    let specification = fields.take("launchTemplate");
    let disk = fields.number("diskSize");
    if specification.is_object() {
        template::read(&mut group, answers.template(specification)?);
    } else {
        without_template(&mut group, disk);
    }
    network(&mut group, &mut fields, &behind);
    if let Some(role) = fields.text("nodeRole") {
        // The role of the node group counts, whatever profile its template names.
        group.class.shift_remove("instanceProfile");
        group.set("role", role.rsplit('/').next().unwrap_or(&role));
    }
    match fields.text("capacityType").as_deref() {
        Some("SPOT") => group.market = Market::Spot,
        Some("CAPACITY_BLOCK") => group.market = Market::Reserved,
        _ => {}
    }
    for (key, value) in fields.map("labels") {
        group.label(&key, &value);
    }
    for mut taint in fields.list("taints").into_iter().map(Fields::of) {
        let mut text = |name: &str| taint.text(name).unwrap_or_default();
        let (key, value, effect) = (text("key"), text("value"), text("effect"));
        group.taint(&key, &value, &effect);
    }
    if group.types.is_empty() && group.requirements.is_empty() {
        group.types = vec![DEFAULT_TYPE.to_owned()];
    }
    let label = format!("eks.amazonaws.com/nodegroup={}", group.name);
    group.note(format!(
        "label {label}: EKS sets it on its own nodes only; add a label of your own where pods select it"
    ));
    fields.ignore(&IGNORED);
    for note in fields.rest("", &ADVICE) {
        group.note(note);
    }
    Ok(group)
}

fn sizes(group: &mut Group, fields: &mut Fields) {
    let mut scaling = fields.object("scalingConfig");
    group.min = scaling.number("minSize").unwrap_or(0);
    group.max = scaling.number("maxSize").unwrap_or(0);
    let mut update = fields.object("updateConfig");
    let percent = update.number("maxUnavailablePercentage").map(|p| format!("{p}%"));
    group.max_unavailable =
        percent.or_else(|| update.number("maxUnavailable").map(|n| n.to_string()));
}

/// What EKS sets by itself where the node group has no launch template.
fn without_template(group: &mut Group, disk: Option<i64>) {
    let family = group.class.get("amiFamily").and_then(Value::as_str).and_then(AmiFamily::parse);
    let device = family.and_then(AmiFamily::ephemeral_device);
    if let (Some(family), Some(device), Some(size)) = (family, device, disk) {
        let mut mappings = family.default_block_devices();
        for mapping in &mut mappings {
            if mapping.device_name.as_deref() == Some(device)
                && let Some(ebs) = &mut mapping.ebs
            {
                ebs.volume_size = Some(format!("{size}Gi"));
            }
        }
        group.set("blockDeviceMappings", json!(mappings));
    }
    group.set("metadataOptions", json!({"httpPutResponseHopLimit": HOPS}));
}

fn network(group: &mut Group, fields: &mut Fields, behind: &[autoscaling::Place]) {
    let subnets = fields.texts("subnets");
    let of_groups = behind.iter().flat_map(|p| p.subnets.clone());
    group.subnets.extend(if subnets.is_empty() { of_groups.collect() } else { subnets });
    group.zones.extend(behind.iter().flat_map(|p| p.zones.clone()));
    if group.class.contains_key("securityGroupSelectorTerms") {
        return;
    }
    // EKS writes a template of its own, which has the security groups.
    for place in behind {
        let Some(data) = &place.template else { continue };
        let mut of_eks = Group::default();
        template::read(&mut of_eks, data.clone());
        if let Some(terms) = of_eks.class.get("securityGroupSelectorTerms") {
            group.set("securityGroupSelectorTerms", terms.clone());
            return;
        }
    }
    let cluster = group.cluster.clone().unwrap_or_default();
    group.set("securityGroupSelectorTerms", json!([{"tags": {"aws:eks:cluster-name": cluster}}]));
}
