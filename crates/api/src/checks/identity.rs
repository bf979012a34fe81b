//! Whether this release knows an object's kind under the `apiVersion` that it names.

use serde_json::Value;

use super::Finding;
use crate::admission::Admission;
use crate::labels;

/// Kinds of releases before 0.33, and what took their place.
const FORMER: [(&str, &str, &str); 3] = [
    ("Provisioner", "karpenter.sh", "NodePool"),
    ("Machine", "karpenter.sh", "NodeClaim"),
    ("AWSNodeTemplate", "karpenter.k8s.aws", "EC2NodeClass"),
];
/// The last release that served them beside those that took their place.
const LAST_RELEASE: &str = "0.32";

/// What is wrong with the object's version and kind; `None` for objects that are served, and for
/// those that have nothing to do with Karpenter.
#[must_use]
pub fn check(object: &Value) -> Option<Finding> {
    let admission = Admission::get();
    if admission.serves(object) || !object.is_object() {
        return None;
    }
    let (version, kind) = (object["apiVersion"].as_str(), object["kind"].as_str());
    match (version, kind) {
        (None, Some(kind)) => without_version(object, kind, &admission.served_versions(kind)),
        (Some(version), None) if is_ours(group_of(version)) => {
            Some(Finding::new("kind", format!("required: a kind of {version}")))
        }
        (Some(version), Some(kind)) => known(version, kind, admission),
        _ => None,
    }
}

fn known(version: &str, kind: &str, admission: &Admission) -> Option<Finding> {
    let group = group_of(version);
    let served = admission.served_versions(kind);
    let groups: Vec<&str> = served.iter().map(|v| group_of(v)).collect();
    if groups.contains(&group) {
        let text = format!("version {version} is not served, expected {}", served.join(" or "));
        return Some(Finding::new("apiVersion", text));
    }
    if let Some((_, _, now)) = FORMER.iter().find(|(k, g, _)| *k == kind && *g == group) {
        let text = format!(
            "{kind} of {version} is not known: it became {now}; {LAST_RELEASE} is the last release of Karpenter that knows both"
        );
        return Some(Finding::new("kind", text));
    }
    // A NodePool of another provider's group is that provider's own.
    let meant = is_ours(group) || kind == "EC2NodeClass";
    if !meant {
        return None;
    }
    if let Some(right) = groups.first() {
        let text = format!(
            "{kind} is a kind of group {right}, not of {group}: expected {}",
            served.join(" or ")
        );
        return Some(Finding::new("apiVersion", text));
    }
    let text = format!(
        "{kind} of {version} is not known, expected NodePool, NodeClaim, NodeOverlay or EC2NodeClass"
    );
    Some(Finding::new("kind", text))
}

/// An object that does not say its version; a field that is spelled almost like it is named.
fn without_version(object: &Value, kind: &str, served: &[&str]) -> Option<Finding> {
    let former = FORMER.iter().any(|(k, ..)| *k == kind);
    if served.is_empty() && !former {
        return None;
    }
    let fields = object.as_object().into_iter().flatten();
    let alike = fields.map(|(name, _)| name).find(|n| n.eq_ignore_ascii_case("apiVersion"));
    let expected = if former { String::new() } else { format!(": {}", served.join(" or ")) };
    let found = alike.map(|n| format!(", found {n:?} instead")).unwrap_or_default();
    Some(Finding::new("apiVersion", format!("required{expected}{found}")))
}

fn group_of(version: &str) -> &str {
    version.split_once('/').map_or("", |(group, _)| group)
}

fn is_ours(group: &str) -> bool {
    group == labels::GROUP || group == labels::AWS_GROUP
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(object: Value) -> String {
        check(&object).map(|f| f.to_string()).unwrap_or_default()
    }

    #[test]
    fn other_objects_have_nothing_to_find() {
        for object in [
            json!({"apiVersion": "v1", "kind": "Pod"}),
            json!({"apiVersion": "karpenter.azure.com/v1", "kind": "AKSNodeClass"}),
            json!({"apiVersion": "eks.amazonaws.com/v1", "kind": "NodeClass"}),
            json!({"kind": "Deployment"}),
            json!({"a": "b"}),
            Value::Null,
            json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool"}),
        ] {
            assert_eq!(text(object.clone()), "", "{object}");
        }
    }

    #[test]
    fn kinds_of_old_releases_name_what_followed_them() {
        for (version, kind, now) in [
            ("karpenter.sh/v1alpha5", "Provisioner", "NodePool"),
            ("karpenter.sh/v1alpha5", "Machine", "NodeClaim"),
            ("karpenter.k8s.aws/v1alpha1", "AWSNodeTemplate", "EC2NodeClass"),
        ] {
            let found = text(json!({"apiVersion": version, "kind": kind}));
            assert!(found.contains(&format!("became {now}")) && found.contains("0.32"), "{found}");
        }
        let old = text(json!({"apiVersion": "karpenter.sh/v1alpha5", "kind": "NodePool"}));
        assert!(old.ends_with("expected karpenter.sh/v1 or karpenter.sh/v1beta1"), "{old}");
    }

    #[test]
    fn the_right_group_is_named() {
        let found = text(json!({"apiVersion": "karpenter.sh/v1", "kind": "EC2NodeClass"}));
        assert!(found.starts_with("apiVersion: EC2NodeClass is a kind of group karpenter.k8s.aws"));
        let found = text(json!({"apiVersion": "karpenter.k8s.aws/v1", "kind": "NodePool"}));
        assert!(found.contains("of group karpenter.sh,"), "{found}");
        let found = text(json!({"apiVersion": "karpenter.sh/v1", "kind": "Widget"}));
        assert!(found.starts_with("kind: Widget of karpenter.sh/v1 is not known"), "{found}");
    }

    #[test]
    fn version_and_kind_are_required() {
        let found = text(json!({"apiversion": "karpenter.sh/v1", "kind": "NodePool"}));
        assert_eq!(
            found,
            "apiVersion: required: karpenter.sh/v1 or karpenter.sh/v1beta1, found \"apiversion\" instead"
        );
        assert_eq!(
            text(json!({"apiVersion": "karpenter.sh/v1"})),
            "kind: required: a kind of karpenter.sh/v1"
        );
    }
}
