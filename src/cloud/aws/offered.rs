//! What a NodePool asks for by name and EC2, as far as this release knows it, does not have.

use std::collections::BTreeSet;

use super::instancetype::requirements::category_and_generation;
use super::pricing;
use crate::api::checks::Finding;
use crate::api::labels;
use crate::api::v1::{NodePool, Operator};
use crate::scheduling::requirements::Requirements;

/// Values of a pool's requirements that name no instance type, family or zone, and requirements that
/// leave no offering together. They are warnings: EC2 may have types that are newer than this release.
#[must_use]
pub fn warnings(pool: &NodePool) -> Vec<Finding> {
    let mut found = Vec::new();
    for (at, wanted) in pool.spec.template.spec.requirements.iter().enumerate() {
        if wanted.operator != Operator::In {
            continue;
        }
        let path = format!("spec.template.spec.requirements[{at}].values");
        for value in &wanted.values {
            let problem = match wanted.key.as_str() {
                labels::INSTANCE_TYPE => unknown("instance type", value, &pricing::known_types()),
                labels::INSTANCE_FAMILY => unknown("instance family", value, &families()),
                labels::ZONE => region(value),
                _ => None,
            };
            found.extend(problem.map(|text| Finding::new(path.clone(), text).as_warning()));
        }
    }
    if found.is_empty() {
        found.extend(nothing_offered(pool));
    }
    found
}

/// What a name says about its type; the rest is known only to EC2.
const NAMED: &[&str] = &[
    labels::INSTANCE_TYPE,
    labels::INSTANCE_FAMILY,
    labels::INSTANCE_SIZE,
    labels::INSTANCE_CATEGORY,
    labels::INSTANCE_GENERATION,
    labels::ARCH,
];
const CAPACITY_TYPES: &[&str] =
    &[labels::CAPACITY_ON_DEMAND, labels::CAPACITY_SPOT, labels::CAPACITY_RESERVED];

/// A warning of a pool whose requirements, each of which can be met, leave no offering together.
fn nothing_offered(pool: &NodePool) -> Option<Finding> {
    let wanted = Requirements::from_api(&pool.spec.template.spec.requirements);
    let warning =
        |text: String| Some(Finding::new("spec.template.spec.requirements", text).as_warning());
    let zones = wanted.get(labels::ZONE).filter(|r| !r.is_complement());
    if zones.is_some_and(|r| r.named() == 0) {
        return warning("no zone is left that all of them allow".to_owned());
    }
    if let Some(kinds) = wanted.get(labels::CAPACITY_TYPE)
        && !CAPACITY_TYPES.iter().any(|kind| kinds.has(kind))
    {
        let known = CAPACITY_TYPES.join(", ");
        return warning(format!("no capacity type is left that all of them allow, of {known}"));
    }
    let meets = |name: &String| {
        let facts = facts(name);
        NAMED.iter().zip(&facts).all(|(key, value)| {
            let Some(requirement) = wanted.get(key) else { return true };
            match value {
                Some(value) => requirement.has(value),
                None => matches!(requirement.operator(), Operator::DoesNotExist | Operator::NotIn),
            }
        })
    };
    let types: BTreeSet<String> = pricing::known_types().into_iter().filter(meets).collect();
    if types.is_empty() {
        return warning("no instance type is known that meets all of them".to_owned());
    }
    // Without zones by name the region is open, and nothing can be said.
    let regions: BTreeSet<String> = zones?.values().map(region_of).collect();
    if regions.iter().any(|region| !pricing::types_in(region).is_disjoint(&types)) {
        return None;
    }
    let (shown, regions) = (listed(types), listed(regions));
    warning(format!("no instance type that meets all of them is offered in {regions}: {shown}"))
}

/// The first five, and how many more.
fn listed(all: BTreeSet<String>) -> String {
    let more = all.len().saturating_sub(5);
    let shown = all.into_iter().take(5).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} other(s)") } else { shown }
}

/// The values of [`NAMED`] for a type, in that order.
fn facts(name: &str) -> [Option<String>; 6] {
    let parts = name.split_once('.').filter(|(_, size)| !size.contains('.'));
    let (category, generation) = category_and_generation(name);
    let part = |text: &str| Some(text.to_owned());
    [
        part(name),
        parts.and_then(|(family, _)| part(family)),
        parts.and_then(|(_, size)| part(size)),
        category,
        generation,
        part(arch(name)),
    ]
}

/// Families with Graviton processors have a `g` behind their generation, but for the first one;
/// Apple's are of their own kind since `mac2`.
fn arch(name: &str) -> &'static str {
    let family = name.split('.').next().unwrap_or_default();
    let after = family.trim_start_matches(|c: char| c.is_ascii_lowercase());
    let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
    let apple = family.starts_with("mac") && family != "mac1";
    if family == "a1" || apple || after.starts_with('g') {
        labels::ARCH_ARM64
    } else {
        labels::ARCH_AMD64
    }
}

/// The region of a zone: `us-west-2` of `us-west-2b` and of `us-west-2-lax-1a`.
pub(crate) fn region_of(zone: &str) -> String {
    let mut parts = Vec::new();
    for part in zone.split('-') {
        let number = part.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        parts.push(if is_number { number } else { part });
        if is_number {
            break;
        }
    }
    parts.join("-")
}

fn families() -> BTreeSet<String> {
    let family = |name: &String| name.split_once('.').map(|(family, _)| family.to_owned());
    pricing::known_types().iter().filter_map(family).collect()
}

fn unknown(what: &str, value: &str, known: &BTreeSet<String>) -> Option<String> {
    if known.contains(value) {
        return None;
    }
    let nearest = known.iter().min_by_key(|name| strsim::damerau_levenshtein(value, name));
    let hint = nearest.map(|name| format!(", did you mean {name}?")).unwrap_or_default();
    Some(format!("no {what} {value} is known{hint}"))
}

/// A region where a zone is meant: nothing is offered in a zone of that name.
fn region(value: &str) -> Option<String> {
    let parts: Vec<&str> = value.split('-').collect();
    let number =
        parts.last().is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    let is_region = (3..=4).contains(&parts.len()) && number;
    is_region.then(|| format!("{value} is a region, expected one of its zones, such as {value}a"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_that_ec2_does_not_have_are_warned_of() {
        let texts = |key: &str, operator: &str, values: &[&str]| -> Vec<String> {
            let spec = json!({"template": {"spec": {"requirements": [
                {"key": key, "operator": operator, "values": values}]}}});
            let pool = NodePool::new("p", serde_json::from_value(spec).unwrap());
            warnings(&pool).into_iter().map(|f| f.message).collect()
        };
        let (kind, zone) = ("node.kubernetes.io/instance-type", "topology.kubernetes.io/zone");
        assert_eq!(
            texts(kind, "In", &["m5.large", "m5.lagre"]),
            ["no instance type m5.lagre is known, did you mean m5.large?"]
        );
        assert!(texts(kind, "NotIn", &["m5.lagre"]).is_empty());
        assert_eq!(texts("karpenter.k8s.aws/instance-family", "In", &["m5", "zz9z"]).len(), 1);
        assert_eq!(
            texts(zone, "In", &["us-east-1a", "us-gov-west-1", "us-west-2-lax-1a"]),
            ["us-gov-west-1 is a region, expected one of its zones, such as us-gov-west-1a"]
        );
        assert!(texts(zone, "In", &["us-east-1-wl1-bos-wlz-1"]).is_empty());
    }

    /// The warnings of a pool with these requirements: key, operator, values.
    fn together(requirements: &[(&str, &str, &[&str])]) -> Vec<String> {
        let list: Vec<_> = requirements
            .iter()
            .map(|(key, operator, values)| {
                json!({"key": key, "operator": operator, "values": values})
            })
            .collect();
        let spec = json!({"template": {"spec": {"requirements": list}}});
        let pool = NodePool::new("p", serde_json::from_value(spec).unwrap());
        warnings(&pool).into_iter().map(|f| f.to_string()).collect()
    }

    #[test]
    fn requirements_that_leave_no_offering_together_are_warned_of() {
        let (family, zone) = (labels::INSTANCE_FAMILY, labels::ZONE);
        let begin = "spec.template.spec.requirements: ";
        let warned = |list: &[(&str, &str, &[&str])], text: &str| {
            assert_eq!(together(list), [format!("{begin}{text}")]);
        };
        let none = "no instance type is known that meets all of them";
        warned(&[(family, "In", &["m5"]), (labels::INSTANCE_CATEGORY, "In", &["c"])], none);
        warned(&[(family, "In", &["m5"]), (labels::INSTANCE_SIZE, "In", &["nano"])], none);
        warned(&[(family, "In", &["m7g", "a1"]), (labels::ARCH, "In", &["amd64"])], none);
        warned(&[(family, "In", &["m5"]), (labels::INSTANCE_GENERATION, "Gt", &["6"])], none);
        warned(
            &[(zone, "In", &["us-east-1a"]), (zone, "NotIn", &["us-east-1a"])],
            "no zone is left that all of them allow",
        );
        warned(
            &[(labels::CAPACITY_TYPE, "In", &["preemptible"])],
            "no capacity type is left that all of them allow, of on-demand, spot, reserved",
        );
        // The published prices of GovCloud have no DL1.
        let found = together(&[
            (family, "In", &["dl1"]),
            (zone, "In", &["us-gov-west-1a", "us-gov-west-1b"]),
        ]);
        let text =
            "no instance type that meets all of them is offered in us-gov-west-1: dl1.24xlarge";
        assert_eq!(found, [format!("{begin}{text}")]);
    }

    #[test]
    fn requirements_that_leave_an_offering_are_not_warned_of() {
        let (family, zone) = (labels::INSTANCE_FAMILY, labels::ZONE);
        assert!(together(&[]).is_empty());
        for list in [
            vec![(family, "In", &["m5"][..]), (zone, "In", &["us-gov-west-1a"])],
            vec![(family, "In", &["dl1"]), (zone, "In", &["us-gov-west-1a", "eu-west-1a"])],
            vec![(family, "NotIn", &["m5"]), (labels::INSTANCE_GENERATION, "Gt", &["4"])],
            vec![(labels::ARCH, "In", &["arm64"]), (labels::INSTANCE_CATEGORY, "In", &["c"])],
            // What only EC2 knows of a type is not judged.
            vec![(labels::INSTANCE_CPU, "In", &["7"])],
            vec![(zone, "In", &["us-west-2-lax-1a"])],
        ] {
            assert_eq!(together(&list), Vec::<String>::new());
        }
    }

    #[test]
    fn names_say_what_they_can() {
        for (zone, region) in [
            ("us-east-1a", "us-east-1"),
            ("us-gov-west-1b", "us-gov-west-1"),
            ("us-west-2-lax-1a", "us-west-2"),
            ("us-east-1-wl1-bos-wlz-1", "us-east-1"),
        ] {
            assert_eq!(region_of(zone), region);
        }
        for (name, arm) in [
            ("m7g.large", true),
            ("g5g.xlarge", true),
            ("im4gn.large", true),
            ("a1.medium", true),
            ("mac2-m2.metal", true),
            ("g4dn.xlarge", false),
            ("m7i-flex.large", false),
            ("mac1.metal", false),
        ] {
            assert_eq!(arch(name) == labels::ARCH_ARM64, arm, "{name}");
        }
    }
}
