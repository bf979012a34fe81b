//! Tags on everything that is created.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{ResourceType, Tag, TagSpecification};

use crate::api::labels;
use crate::api::v1::{EC2NodeClass, NodeClaim};

/// Tag with the cluster's name.
pub const CLUSTER_NAME: &str = "eks:eks-cluster-name";
/// Tag with the NodeClaim's name.
pub const NODECLAIM: &str = "karpenter.sh/nodeclaim";

/// Tags that users set although Karpenter needs them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tags failed validation requirements (tags={0})")]
pub struct RestrictedTags(String);

fn is_restricted(key: &str) -> bool {
    let cluster = key.strip_prefix("kubernetes.io/cluster/").is_some_and(|name| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    });
    cluster || matches!(key, labels::NODEPOOL | CLUSTER_NAME | labels::EC2NODECLASS | NODECLAIM)
}

/// The user's tags with Karpenter's over them.
///
/// # Errors
/// When the user sets one of Karpenter's own tags.
pub fn of(
    class: &EC2NodeClass,
    claim: &NodeClaim,
    cluster: &str,
) -> Result<BTreeMap<String, String>, RestrictedTags> {
    let mut tags = class.spec.tags.clone().unwrap_or_default();
    let bad: Vec<String> =
        tags.keys().filter(|k| is_restricted(k)).map(|k| format!("{k:?}")).collect();
    if !bad.is_empty() {
        return Err(RestrictedTags(bad.join(", ")));
    }
    // The NodeClaim's own name is not among them: launches with equal tags share a CreateFleet
    // call.
    let pool = claim.metadata.labels.as_ref().and_then(|l| l.get(labels::NODEPOOL));
    tags.extend([
        (format!("kubernetes.io/cluster/{cluster}"), "owned".to_owned()),
        (labels::NODEPOOL.to_owned(), pool.cloned().unwrap_or_default()),
        (CLUSTER_NAME.to_owned(), cluster.to_owned()),
        (labels::EC2NODECLASS.to_owned(), class.metadata.name.clone().unwrap_or_default()),
    ]);
    Ok(tags)
}

/// Tags in the form of the EC2 API.
#[must_use]
pub fn to_ec2(tags: &BTreeMap<String, String>) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

/// Tags for a kind of resource.
#[must_use]
pub fn specification(kind: ResourceType, tags: &BTreeMap<String, String>) -> TagSpecification {
    TagSpecification::builder().resource_type(kind).set_tags(Some(to_ec2(tags))).build()
}

#[cfg(test)]
mod tests {
    use super::super::instance::identity::LAUNCHED_FOR;
    use super::*;

    #[test]
    fn the_reference_page_lists_every_tag() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/reference/labels.md");
        let text = std::fs::read_to_string(page).unwrap();
        let section = text.split("\n## Tags of AWS resources\n").nth(1).unwrap();
        let class = EC2NodeClass::new("c", Default::default());
        let tags = of(&class, &NodeClaim::default(), "NAME").unwrap();
        for tag in tags.keys().map(String::as_str).chain([NODECLAIM, LAUNCHED_FOR, "Name"]) {
            assert!(section.contains(&format!("| `{tag}` |")), "{tag}");
        }
    }

    #[test]
    fn karpenters_own_tags_are_refused() {
        let class = |tags: serde_json::Value| {
            EC2NodeClass::new(
                "c",
                serde_json::from_value(serde_json::json!({"tags": tags})).unwrap(),
            )
        };
        let claim = NodeClaim::new("n", Default::default());
        let tags = of(&class(serde_json::json!({"team": "x"})), &claim, "k").unwrap();
        assert_eq!(tags["kubernetes.io/cluster/k"], "owned");
        assert_eq!(tags["team"], "x");
        for key in [CLUSTER_NAME, NODECLAIM, "kubernetes.io/cluster/other"] {
            assert!(of(&class(serde_json::json!({key: "x"})), &claim, "k").is_err(), "{key}");
        }
    }
}
