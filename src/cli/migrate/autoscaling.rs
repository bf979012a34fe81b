//! Auto Scaling groups.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::answers::Answers;
use super::fields::Fields;
use super::group::{Group, Kind, Market, Unit};
use super::{attributes, template};

/// Fields that mean nothing for new nodes.
const IGNORED: [&str; 17] = [
    "AutoScalingGroupARN",
    "CapacityRebalance",
    "CreatedTime",
    "DefaultCooldown",
    "DefaultInstanceWarmup",
    "DeletionProtection",
    "DesiredCapacity",
    "EnabledMetrics",
    "HealthCheckGracePeriod",
    "HealthCheckType",
    "Instances",
    "PredictedCapacity",
    "ServiceLinkedRoleARN",
    "Status",
    "TerminationPolicies",
    "AvailabilityZoneIds",
    "AvailabilityZoneDistribution",
];
// What to do about fields that have no counterpart.
const ADVICE: [(&str, &str); 8] = [
    ("LoadBalancerNames", "instances are not registered; use a Service or targets of type ip"),
    (
        "TargetGroupARNs",
        "instances are not registered; use targets of type ip, or the AWS Load Balancer Controller",
    ),
    (
        "TrafficSources",
        "instances are not registered; use targets of type ip, or the AWS Load Balancer Controller",
    ),
    ("SuspendedProcesses", "processes of the group do not exist here"),
    ("WarmPoolConfiguration", "there are no warm pools; a CapacityBuffer keeps room ready"),
    ("WarmPoolSize", "there are no warm pools; a CapacityBuffer keeps room ready"),
    (
        "NewInstancesProtectedFromScaleIn",
        "set spec.disruption.budgets with nodes: \"0\", or karpenter.sh/do-not-disrupt on pods",
    ),
    ("InstanceMaintenancePolicy", "set spec.disruption.budgets"),
];

/// The name of a group.
pub fn name(group: &Value) -> &str {
    group["AutoScalingGroupName"].as_str().unwrap_or_default()
}

/// The managed node group that an Auto Scaling group belongs to.
pub fn node_group(group: &Value) -> Option<&str> {
    let tags = group["Tags"].as_array().into_iter().flatten();
    tags.filter(|t| t["Key"] == "eks:nodegroup-name").find_map(|t| t["Value"].as_str())
}

/// True for a group that is tagged as one of a cluster's nodes.
pub fn is_tagged(group: &Value) -> bool {
    // Tags of Cluster Autoscaler's discovery, of self-managed nodes, and of EKS' managed node
    // groups.
    const MARKS: [&str; 3] =
        ["k8s.io/cluster-autoscaler/", "kubernetes.io/cluster/", "eks:cluster-name"];
    let tags = group["Tags"].as_array().into_iter().flatten();
    tags.filter_map(|t| t["Key"].as_str()).any(|key| MARKS.iter().any(|m| key.starts_with(m)))
}

/// Where the instances of a group run, and the template that they come from.
pub struct Place {
    pub zones: Vec<String>,
    pub subnets: Vec<String>,
    pub template: Option<Value>,
}

/// What a managed node group needs to know of its Auto Scaling group.
pub fn place(answers: &Answers, name: &str) -> Option<Place> {
    let found = answers.groups.iter().find(|g| self::name(g) == name)?;
    let mut fields = Fields::of(found.clone());
    let (zones, subnets) = zones(&mut fields);
    let mut mixed = fields.object("MixedInstancesPolicy").object("LaunchTemplate");
    let mixed = mixed.take("LaunchTemplateSpecification");
    let plain = fields.take("LaunchTemplate");
    let specification = if plain.is_object() { plain } else { mixed };
    Some(Place { zones, subnets, template: answers.template(specification).ok() })
}

fn zones(fields: &mut Fields) -> (Vec<String>, Vec<String>) {
    let subnets = fields.text("VPCZoneIdentifier").unwrap_or_default();
    let subnets = subnets.split(',').map(str::trim).filter(|s| !s.is_empty());
    (fields.texts("AvailabilityZones"), subnets.map(str::to_owned).collect())
}

/// Reads an Auto Scaling group.
///
/// # Errors
/// When what its instances are launched from is not in the files.
pub fn read(answers: &Answers, group: &Value) -> Result<Group, String> {
    let mut fields = Fields::of(group.clone());
    let mut group = Group { kind: Kind::AutoScalingGroup, ..Group::default() };
    group.name = fields.text("AutoScalingGroupName").unwrap_or_default();
    group.sources = vec![group.name.clone()];
    let (zones, subnets) = zones(&mut fields);
    group.zones.extend(zones);
    group.subnets.extend(subnets);
    group.min = fields.number("MinSize").unwrap_or(0);
    group.max = fields.number("MaxSize").unwrap_or(0);
    group.unit = match fields.text("DesiredCapacityType").as_deref() {
        Some("vcpu") => Unit::Cpu,
        Some("memory-mib") => Unit::Memory,
        _ => Unit::Instances,
    };
    // The group's own settings come before those of its template.
    let mut tags = Vec::new();
    for mut tag in fields.list("Tags").into_iter().map(Fields::of) {
        let (key, value) = (tag.text("Key").unwrap_or_default(), tag.text("Value"));
        let value = value.unwrap_or_default();
        group.read_tag(&key, &value);
        if tag.take("PropagateAtLaunch") == true {
            tags.push((key, value));
        }
    }
    let market = launch(answers, &mut group, &mut fields)?;
    for (key, value) in tags {
        template::tag(&mut group, &key, &value);
    }
    if let Some(market) = market {
        group.market = market;
    }
    if let Some(placement) = fields.text("PlacementGroup") {
        group.set("placementGroupSelector", json!({"name": placement}));
    }
    group.lifetime = fields.number("MaxInstanceLifetime").filter(|seconds| *seconds > 0);
    let mut reservations = fields.object("CapacityReservationSpecification");
    reservations.ignore(&["CapacityReservationPreference"]);
    for note in reservations.rest("CapacityReservationSpecification.", &[]) {
        group.note(note);
    }
    fields.ignore(&IGNORED);
    for note in fields.rest("", &ADVICE) {
        group.note(note);
    }
    Ok(group)
}

/// Reads what instances are launched from; returns how the group itself says they are paid.
fn launch(
    answers: &Answers,
    group: &mut Group,
    fields: &mut Fields,
) -> Result<Option<Market>, String> {
    let mut policy = fields.object("MixedInstancesPolicy");
    let mut mixed = policy.object("LaunchTemplate");
    let plain = fields.take("LaunchTemplate");
    let configuration = fields.text("LaunchConfigurationName");
    let specification = mixed.take("LaunchTemplateSpecification");
    let has_policy = specification.is_object();
    let data = match (configuration, has_policy, plain.is_object()) {
        (Some(name), ..) => template::of_configuration(answers.configuration(&name)?),
        (None, true, _) => answers.template(specification)?,
        (None, false, true) => answers.template(plain)?,
        _ => {
            return Err(
                "has no launch template, launch configuration or mixed instances policy".to_owned()
            );
        }
    };
    overrides(answers, group, &data, mixed.list("Overrides"))?;
    template::read(group, data);
    if !has_policy {
        return Ok(None);
    }
    let mut distribution = policy.object("InstancesDistribution");
    let base = distribution.number("OnDemandBaseCapacity").unwrap_or(0);
    let percent = distribution.number("OnDemandPercentageAboveBaseCapacity").unwrap_or(100);
    if let Some(price) = distribution.text("SpotMaxPrice") {
        group.note(format!(
            "SpotMaxPrice ({price}): a NodePool has no highest price; spot costs at most the on-demand price"
        ));
    }
    let order = distribution.text("OnDemandAllocationStrategy");
    if order.as_deref() == Some("prioritized") && group.types.len() > 1 {
        group.note("OnDemandAllocationStrategy prioritized: the cheapest type that fits is launched; split the types over NodePools with weights to keep an order");
    }
    Ok(Some(match (base, percent) {
        // The base makes no difference when everything above it is on demand too.
        (_, 100) => Market::OnDemand,
        (0, 0) => Market::Spot,
        (base, percent) => Market::Mixed { base, percent },
    }))
}

/// Reads the overrides of a mixed instances policy: types, weights, attributes, templates of their own.
fn overrides(
    answers: &Answers,
    group: &mut Group,
    data: &Value,
    overrides: Vec<Value>,
) -> Result<(), String> {
    let mut weights = BTreeMap::new();
    let mut images = Vec::new();
    for mut entry in overrides.into_iter().map(Fields::of) {
        let name = entry.text("InstanceType");
        if let Some(name) = &name {
            group.types.push(name.clone());
            let weight = entry.text("WeightedCapacity").and_then(|w| w.parse().ok());
            weights.insert(name.clone(), weight.unwrap_or(1));
        }
        let requirements = entry.take("InstanceRequirements");
        if requirements.is_object() && group.requirements.is_empty() {
            attributes::read(group, requirements);
        } else if requirements.is_object() {
            // Requirements are met together, overrides one or the other.
            group.note("Overrides: only the first InstanceRequirements is carried over; write a NodePool for each of the others");
        }
        let specification = entry.take("LaunchTemplateSpecification");
        if specification.is_object() {
            let own = answers.template(specification)?;
            images.extend(own["ImageId"].as_str().map(str::to_owned));
            if without_image(&own) != without_image(data) {
                let name = name.unwrap_or_default();
                group.note(format!("override {name}: its launch template differs in more than the image; the rest comes from the group's template"));
            }
        }
    }
    if weights.values().any(|weight| *weight != 1) {
        group.unit = Unit::Weights(weights);
    }
    // Terms are alternatives: each type gets the image of its architecture.
    group.images = images;
    Ok(())
}

fn without_image(data: &Value) -> Value {
    let mut rest = data.clone();
    if let Some(map) = rest.as_object_mut() {
        for field in ["ImageId", "InstanceType"] {
            map.remove(field);
        }
    }
    rest
}
