//! What a NodePool asks for by name and EC2, as far as this release knows it, does not have.

use std::collections::BTreeSet;

use super::pricing;
use crate::api::checks::Finding;
use crate::api::labels;
use crate::api::v1::{NodePool, Operator};

/// Values of a pool's requirements that name no instance type, family or zone. They are warnings:
/// EC2 may have types that are newer than this release.
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
    found
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
}
