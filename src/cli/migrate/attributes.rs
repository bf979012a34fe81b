//! Instance types described by attributes, as requirements of a NodePool.

use serde_json::Value;

use super::fields::Fields;
use super::group::Group;
use crate::api::labels;
use crate::cloud::aws::pricing;

/// Ranges that a numeric label expresses: the attribute, the label, and the label's units per unit of it.
const RANGES: [(&str, &str, f64); 5] = [
    ("VCpuCount", labels::INSTANCE_CPU, 1.0),
    ("MemoryMiB", labels::INSTANCE_MEMORY, 1.0),
    ("TotalLocalStorageGB", labels::INSTANCE_LOCAL_NVME, 1.0),
    ("BaselineEbsBandwidthMbps", labels::INSTANCE_EBS_BANDWIDTH, 1.0),
    ("NetworkBandwidthGbps", labels::INSTANCE_NETWORK_BANDWIDTH, 1000.0),
];

// What to do about attributes that no label expresses; names are those of EC2's
// InstanceRequirements.
const ADVICE: [(&str, &str); 5] = [
    ("InstanceGenerations", "no label has it; require karpenter.k8s.aws/instance-generation"),
    ("SpotMaxPricePercentageOverLowestPrice", "price protection: the cheapest types are chosen"),
    (
        "OnDemandMaxPricePercentageOverLowestPrice",
        "price protection: the cheapest types are chosen",
    ),
    (
        "MaxSpotPriceAsPercentageOfOptimalOnDemandPrice",
        "price protection: the cheapest types are chosen",
    ),
    (
        "LocalStorageTypes",
        "local disks are NVMe disks; require karpenter.k8s.aws/instance-local-nvme",
    ),
];

/// Adds what the attributes (`InstanceRequirements`) ask for to the group's requirements.
pub fn read(group: &mut Group, attributes: Value) {
    let mut fields = Fields::of(attributes);
    for (name, key, scale) in RANGES {
        range(group, &mut fields, name, key, scale);
    }
    accelerators(group, &mut fields);
    let makers: Vec<String> = fields
        .texts("CpuManufacturers")
        .iter()
        .map(|m| if m == "amazon-web-services" { "aws".to_owned() } else { m.clone() })
        .collect();
    if !makers.is_empty() {
        group.require(labels::INSTANCE_CPU_MANUFACTURER, "In", &makers);
    }
    // EC2 leaves both out unless they are asked for.
    let hypervisors = ["nitro".to_owned(), "xen".to_owned()];
    choice(group, &mut fields, "BareMetal", "excluded", |group, operator| {
        let operator = if operator == "In" { "NotIn" } else { "In" };
        group.require(labels::INSTANCE_HYPERVISOR, operator, &hypervisors);
    });
    choice(group, &mut fields, "BurstablePerformance", "excluded", |group, operator| {
        group.require(labels::INSTANCE_CATEGORY, operator, &["t".to_owned()]);
    });
    choice(group, &mut fields, "LocalStorage", "included", |group, operator| {
        let operator = if operator == "In" { "Exists" } else { "DoesNotExist" };
        group.require(labels::INSTANCE_LOCAL_NVME, operator, &[]);
    });
    names(group, &fields.texts("AllowedInstanceTypes"), "In");
    names(group, &fields.texts("ExcludedInstanceTypes"), "NotIn");
    for note in fields.rest("InstanceRequirements.", &ADVICE) {
        group.note(note);
    }
}

/// A field that is `included`, `excluded` or `required`; calls `add` with In or NotIn for the latter two.
fn choice(
    group: &mut Group,
    fields: &mut Fields,
    name: &str,
    default: &str,
    add: impl Fn(&mut Group, &str),
) {
    match fields.text(name).as_deref().unwrap_or(default) {
        "required" => add(group, "In"),
        "excluded" => add(group, "NotIn"),
        _ => {}
    }
}

fn range(group: &mut Group, fields: &mut Fields, name: &str, key: &str, scale: f64) {
    let bounds = fields.take(name);
    // Whole units of the label: the bounds of the answer may have fractions.
    #[allow(clippy::cast_possible_truncation)]
    let bound = |end: &str| bounds[end].as_f64().map(|n| (n * scale).round() as i64);
    if let Some(min) = bound("Min").filter(|min| *min > 0) {
        // NodePool requirements have `Gt` and `Lt`, and bounds of EC2 are inclusive.
        group.require(key, "Gt", &[(min - 1).to_string()]);
    }
    if let Some(max) = bound("Max") {
        group.require(key, "Lt", &[(max + 1).to_string()]);
    }
}

fn accelerators(group: &mut Group, fields: &mut Fields) {
    let kinds = fields.texts("AcceleratorTypes");
    let inference = kinds.iter().any(|k| k == "inference");
    // EC2 counts GPUs among accelerators; Karpenter has a label of its own for each.
    let gpu = !inference || kinds.iter().any(|k| k == "gpu");
    let (count, name, maker) = if gpu {
        (labels::INSTANCE_GPU_COUNT, labels::INSTANCE_GPU_NAME, labels::INSTANCE_GPU_MANUFACTURER)
    } else {
        (
            labels::INSTANCE_ACCELERATOR_COUNT,
            labels::INSTANCE_ACCELERATOR_NAME,
            labels::INSTANCE_ACCELERATOR_MANUFACTURER,
        )
    };
    let bounds = fields.take("AcceleratorCount");
    if bounds["Max"] == 0 {
        group.require(labels::INSTANCE_GPU_COUNT, "DoesNotExist", &[]);
        group.require(labels::INSTANCE_ACCELERATOR_COUNT, "DoesNotExist", &[]);
    } else {
        let mut again = Fields::of(serde_json::json!({"AcceleratorCount": bounds}));
        range(group, &mut again, "AcceleratorCount", count, 1.0);
        if bounds["Min"].as_i64().unwrap_or(0) < 1 && !kinds.is_empty() {
            group.require(count, "Exists", &[]);
        }
    }
    for (field, key) in [("AcceleratorNames", name), ("AcceleratorManufacturers", maker)] {
        let values = fields.texts(field);
        if !values.is_empty() {
            group.require(key, "In", &values);
        }
    }
}

/// Names of instance types in which `*` stands for any text.
fn names(group: &mut Group, patterns: &[String], operator: &str) {
    if patterns.is_empty() {
        return;
    }
    // A list of families stays open for sizes that EC2 adds later; a list of types would not.
    let families: Option<Vec<String>> = patterns
        .iter()
        .map(|p| p.strip_suffix(".*").filter(|f| !f.contains('*')).map(str::to_owned))
        .collect();
    if let Some(families) = families {
        group.require(labels::INSTANCE_FAMILY, operator, &families);
        return;
    }
    let known = pricing::known_types();
    let mut found: Vec<String> = Vec::new();
    for pattern in patterns {
        if pattern.contains('*') {
            found.extend(known.iter().filter(|name| matches(pattern, name)).cloned());
            group.note(format!(
                "InstanceRequirements: {pattern} became the instance types that this release knows"
            ));
        } else {
            found.push(pattern.clone());
        }
    }
    found.sort();
    found.dedup();
    group.require(labels::INSTANCE_TYPE, operator, &found);
}

/// Whether a name matches a pattern in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches(tail, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, expected) in [
            ("m5.8xlarge", "m5.8xlarge", true),
            ("c5*.*", "c5n.large", true),
            ("r*", "r6g.medium", true),
            ("*3*", "m3.large", true),
            ("*3*", "m4.large", false),
            ("m5.*", "m5a.large", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
