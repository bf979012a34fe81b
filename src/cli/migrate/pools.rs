//! NodePools and EC2NodeClasses of groups.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::group::{Group, Market, Unit};
use crate::api::labels;
use crate::cli::render::instancetype::Facts;
use crate::cloud::aws::ami::AmiFamily;

/// How long Cluster Autoscaler leaves an unneeded node by default (`--scale-down-unneeded-time`).
const UNNEEDED: &str = "10m";
/// The label that workloads spread over to keep a share of spot capacity.
const SPREAD: &str = "capacity-spread";
/// Longest name of a pool, so that suffixes still make a label's value.
const LONGEST: usize = 48;
/// Fields of a node class in the order in which they are written; others come before the last.
const ORDER: [&str; 6] = [
    "amiFamily",
    "amiSelectorTerms",
    "role",
    "instanceProfile",
    "subnetSelectorTerms",
    "securityGroupSelectorTerms",
];

/// Makes manifests of groups; keeps names apart, and node classes together that are equal.
#[derive(Debug, Default)]
pub struct Writer {
    names: BTreeSet<String>,
    classes: Vec<(String, Value)>,
    keep_minimum: bool,
}

/// Nodes of one NodePool.
struct Share {
    suffix: &'static str,
    capacity_type: &'static str,
    min: i64,
    max: i64,
    weight: Option<i64>,
    /// Values of the label that workloads spread over.
    spread: Vec<String>,
}

impl Writer {
    /// `keep_minimum`: write static NodePools for the minimum sizes.
    pub fn new(keep_minimum: bool) -> Self {
        Self { keep_minimum, ..Self::default() }
    }

    /// The manifests of a group, the node class first unless an equal one was written before.
    ///
    /// # Errors
    /// What a node class cannot do without.
    pub fn write(&mut self, group: &mut Group) -> Result<Vec<Value>, String> {
        let spec = class_spec(group)?;
        let minimum = |suffix: &str| format!("{suffix}-minimum");
        let endings: Vec<String> = shares(group)
            .iter()
            .flat_map(|s| [Some(s.suffix.to_owned()), self.keep_minimum.then(|| minimum(s.suffix))])
            .flatten()
            .collect();
        let name = self.name(&group.name, &endings);
        let mut manifests = Vec::new();
        let class = self.classes.iter().find(|(_, other)| *other == spec).map(|(n, _)| n.clone());
        let class = class.unwrap_or_else(|| {
            self.classes.push((name.clone(), spec.clone()));
            manifests.push(json!({"apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass",
                "metadata": {"name": name}, "spec": spec}));
            name.clone()
        });
        for share in shares(group) {
            let name = format!("{name}{}", share.suffix);
            let keep = self.keep_minimum && group.unit == Unit::Instances && share.min > 0;
            if keep {
                let mut pool = pool(group, &format!("{name}-minimum"), &class, &share);
                pool["spec"]["replicas"] = json!(share.min);
                // The CRD refuses a weight on a static NodePool, and limits other than `nodes`.
                if let Some(spec) = pool["spec"].as_object_mut() {
                    spec.shift_remove("weight");
                    spec.shift_remove("limits");
                }
                manifests.push(pool);
            }
            let rest = if keep { share.max - share.min } else { share.max };
            if rest > 0 || !keep {
                let mut pool = pool(group, &name, &class, &share);
                pool["spec"]["limits"] = limits(&group.unit, rest);
                manifests.push(pool);
            }
        }
        self.notes(group);
        Ok(manifests)
    }

    /// A name for the objects of a group that no other has.
    ///
    /// `endings` are what the names of its NodePools have behind it.
    fn name(&mut self, group: &str, endings: &[String]) -> String {
        let lower = group.to_ascii_lowercase();
        let plain: String =
            lower.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let plain = plain.trim_matches('-');
        let plain = plain[..plain.len().min(LONGEST)].trim_end_matches('-');
        let plain = if plain.is_empty() { "group" } else { plain };
        let mut name = plain.to_owned();
        let mut count = 1;
        loop {
            let mut all: Vec<String> = endings.iter().map(|e| format!("{name}{e}")).collect();
            all.push(name.clone());
            if !all.iter().any(|n| self.names.contains(n)) {
                self.names.extend(all);
                return name;
            }
            count += 1;
            name = format!("{plain}-{count}");
        }
    }

    fn notes(&self, group: &mut Group) {
        let (min, max) = (group.min, group.max);
        if min > 0 && !(self.keep_minimum && group.unit == Unit::Instances) {
            group.note(format!(
                "minimum size {min}: nodes exist while pods need them; --keep-minimum writes a static NodePool (feature gate StaticCapacity), a CapacityBuffer keeps room ready"
            ));
        }
        if min > 0 && self.keep_minimum && group.unit == Unit::Instances {
            group.note("minimum size: static NodePools need the feature gate StaticCapacity");
        }
        if max == 0 {
            group.note("maximum size 0: the NodePool launches nothing until its limit is raised");
        }
        if let Market::Mixed { base, percent } = group.market {
            let text = if percent == 0 {
                format!(
                    "on-demand base {base}: the on-demand NodePool comes first, up to its limit"
                )
            } else {
                format!(
                    "on-demand base {base} and {percent}% above it: the share holds at the maximum size, below it on-demand nodes come first; for the share at each size add a topologySpreadConstraint with maxSkew 1, topologyKey {SPREAD} and whenUnsatisfiable DoNotSchedule to the workloads"
                )
            };
            group.note(text);
        }
        if group.market == Market::Spot {
            group.note("spot only: add on-demand to the NodePool's capacity types to fall back when there is no spot capacity");
        }
    }
}

/// The NodePools that a group becomes.
fn shares(group: &Group) -> Vec<Share> {
    let Market::Mixed { base, percent } = group.market else {
        let capacity_type = match group.market {
            Market::Spot => labels::CAPACITY_SPOT,
            Market::Reserved => labels::CAPACITY_RESERVED,
            _ => labels::CAPACITY_ON_DEMAND,
        };
        let (min, max) = (group.min, group.max);
        return vec![Share {
            suffix: "",
            capacity_type,
            min,
            max,
            weight: None,
            spread: Vec::new(),
        }];
    };
    // EC2 rounds the on-demand share up.
    let on_demand = |size: i64| size.min(base + ((size - base).max(0) * percent + 99) / 100);
    let parts = spread_parts(percent);
    let values = |from: i64, to: i64| (from..=to).map(|n| n.to_string()).collect::<Vec<_>>();
    let (first, all) = parts.unwrap_or((0, 0));
    vec![
        Share {
            suffix: "-on-demand",
            capacity_type: labels::CAPACITY_ON_DEMAND,
            min: on_demand(group.min),
            max: on_demand(group.max),
            weight: Some(10),
            spread: values(1, first),
        },
        Share {
            suffix: "-spot",
            capacity_type: labels::CAPACITY_SPOT,
            min: group.min - on_demand(group.min),
            max: group.max - on_demand(group.max),
            weight: None,
            spread: values(first + 1, all),
        },
    ]
}

/// A percentage as parts of a whole, in tenths: 20 is (1, 5). `None` for all or nothing.
fn spread_parts(percent: i64) -> Option<(i64, i64)> {
    if percent <= 0 {
        return None;
    }
    let tenths = ((percent + 5) / 10).clamp(1, 9);
    let divisor = [5, 2].into_iter().find(|d| tenths % d == 0).unwrap_or(1);
    Some((tenths / divisor, 10 / divisor))
}

fn pool(group: &Group, name: &str, class: &str, share: &Share) -> Value {
    let mut template = json!({"spec": {
        "nodeClassRef": {"group": labels::AWS_GROUP, "kind": "EC2NodeClass", "name": class},
        "requirements": requirements(group, share),
        // Explicit, since Karpenter's default expires nodes after 30 days, and the group's never
        // did.
        "expireAfter": group.lifetime.map_or_else(|| "Never".to_owned(), |s| format!("{s}s")),
    }});
    if !group.labels.is_empty() {
        template["metadata"] = json!({"labels": group.labels});
    }
    for (field, taints) in [("taints", &group.taints), ("startupTaints", &group.startup_taints)] {
        if !taints.is_empty() {
            template["spec"][field] = json!(taints);
        }
    }
    let after = group.unneeded.as_deref().unwrap_or(UNNEEDED);
    let mut spec = json!({
        "template": template,
        "limits": {},
        "disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": after},
    });
    if let Some(nodes) = &group.max_unavailable {
        spec["disruption"]["budgets"] =
            // Karpenter's default budget stays for everything else: budgets that are given replace
            // it.
            json!([{"nodes": "10%"}, {"nodes": nodes, "reasons": ["Drifted"]}]);
    }
    if let Some(weight) = share.weight {
        spec["weight"] = json!(weight);
    }
    json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": name}, "spec": spec})
}

fn requirements(group: &Group, share: &Share) -> Vec<Value> {
    let one_of = |key: &str, values: Value| json!({"key": key, "operator": "In", "values": values});
    let family = group.class.get("amiFamily").and_then(Value::as_str).and_then(AmiFamily::parse);
    let system = if family.is_some_and(AmiFamily::is_windows) { "windows" } else { "linux" };
    let mut all = Vec::new();
    if !group.types.is_empty() {
        all.push(one_of(labels::INSTANCE_TYPE, json!(group.types)));
    }
    all.extend(group.requirements.clone());
    all.push(one_of(labels::OS, json!([system])));
    all.push(one_of(labels::CAPACITY_TYPE, json!([share.capacity_type])));
    if !group.zones.is_empty() {
        all.push(one_of(labels::ZONE, json!(group.zones)));
    }
    if !share.spread.is_empty() {
        all.push(one_of(SPREAD, json!(share.spread)));
    }
    all
}

/// The largest size of a group as limits of a NodePool.
fn limits(unit: &Unit, max: i64) -> Value {
    match unit {
        Unit::Instances => json!({"nodes": max.to_string()}),
        Unit::Cpu => json!({"cpu": max.to_string()}),
        Unit::Memory => json!({"memory": format!("{max}Mi")}),
        Unit::Weights(weights) => {
            // The most vCPUs that so many units may be.
            let cpus: Option<Vec<i64>> = weights
                .iter()
                .map(|(name, weight)| {
                    Facts::find(name).map(|f| (f.vcpus * max).div_euclid((*weight).max(1)))
                })
                .collect();
            match cpus.and_then(|all| all.into_iter().max()) {
                Some(cpus) => json!({"cpu": cpus.to_string()}),
                None => {
                    let lightest = weights.values().min().copied().unwrap_or(1).max(1);
                    json!({"nodes": ((max + lightest - 1) / lightest).to_string()})
                }
            }
        }
    }
}

/// The node class's spec, with what it cannot do without.
fn class_spec(group: &mut Group) -> Result<Value, String> {
    if !group.class.contains_key("amiSelectorTerms") {
        return Err(
            "its launch template names no image, expected ImageId or an AMI type of the node group"
                .to_owned(),
        );
    }
    let cluster = group.cluster.clone().unwrap_or_else(|| "CLUSTER".to_owned());
    if !group.class.contains_key("role") && !group.class.contains_key("instanceProfile") {
        group.set("role", format!("KarpenterNodeRole-{cluster}"));
        group.note(format!("its launch template names no instance profile: create the role KarpenterNodeRole-{cluster}"));
    }
    let discovery = json!([{"tags": {"karpenter.sh/discovery": cluster}}]);
    if group.subnets.is_empty() {
        group.set("subnetSelectorTerms", discovery.clone());
        group.note(format!("it names no subnets: tag them with karpenter.sh/discovery={cluster}"));
    } else {
        let terms: Vec<Value> = group.subnets.iter().map(|id| json!({"id": id})).collect();
        group.set("subnetSelectorTerms", terms);
    }
    if !group.class.contains_key("securityGroupSelectorTerms") {
        group.set("securityGroupSelectorTerms", discovery);
        group.note(format!(
            "it names no security groups: tag them with karpenter.sh/discovery={cluster}"
        ));
    }
    let mut rest = group.class.clone();
    let mut spec = Map::new();
    for field in ORDER {
        spec.extend(rest.shift_remove(field).map(|value| (field.to_owned(), value)));
    }
    // Last, since it is the longest by far.
    let user_data = rest.shift_remove("userData");
    spec.extend(
        rest.into_iter().filter(|(_, value)| value.as_object().is_none_or(|m| !m.is_empty())),
    );
    spec.extend(user_data.map(|text| ("userData".to_owned(), text)));
    Ok(Value::Object(spec))
}

#[cfg(test)]
mod tests {
    use super::spread_parts;

    #[test]
    fn a_share_becomes_the_fewest_parts() {
        let of = |percent| spread_parts(percent);
        assert_eq!([of(0), of(20), of(50)], [None, Some((1, 5)), Some((1, 2))]);
        assert_eq!([of(30), of(3), of(99)], [Some((3, 10)), Some((1, 10)), Some((9, 10))]);
    }
}
