use serde_json::{Value, json};

use super::*;

#[path = "../../../../tests/e2e/api/table.rs"]
mod table;

fn overlay(spec: Value) -> Value {
    json!({"apiVersion": "karpenter.sh/v1alpha1", "kind": "NodeOverlay",
        "metadata": {"name": "o"}, "spec": spec})
}

fn refused(object: Value) -> Vec<String> {
    let admitted = Admission::get().create(object).unwrap();
    admitted.findings.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_nest_and_unknown_fields_go() {
    let pool = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": "p"}, "more": 1,
        "spec": {"nodes": 3, "template": {"metadata": {"name": "x"}, "spec": {"requirements": [],
            "nodeClassRef": {"group": "g", "kind": "K", "name": "n"}}}}});
    let admitted = Admission::get().create(pool).unwrap();
    assert!(admitted.findings.is_empty(), "{:?}", admitted.findings);
    let unknown: Vec<&str> = admitted.unknown.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(unknown, ["spec.nodes", "spec.template.metadata.name", "more"]);
    let spec = &admitted.object["spec"];
    assert_eq!(
        spec["disruption"],
        json!({"consolidateAfter": "0s", "budgets": [{"nodes": "10%"}],
            "consolidationPolicy": "WhenEmptyOrUnderutilized"})
    );
    assert_eq!(spec["template"]["spec"]["expireAfter"], "720h");
    assert_eq!(spec.get("nodes"), None);
}

#[test]
fn open_objects_keep_everything() {
    let class = json!({"apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass",
        "metadata": {"name": "c"}, "spec": {"role": "r", "kubelet": {"any": {"thing": [1]}},
            "amiSelectorTerms": [{"alias": "al2023@latest"}],
            "subnetSelectorTerms": [{"id": "subnet-1"}],
            "securityGroupSelectorTerms": [{"id": "sg-1"}],
            "metadataOptions": {"httpTokens": null}}});
    let admitted = Admission::get().create(class).unwrap();
    assert!(admitted.findings.is_empty(), "{:?}", admitted.findings);
    assert!(admitted.unknown.is_empty());
    assert_eq!(admitted.object["spec"]["kubelet"], json!({"any": {"thing": [1]}}));
    assert_eq!(admitted.object["spec"]["metadataOptions"]["httpTokens"], "required");
}

#[test]
fn every_rule_can_be_compiled() {
    fn walk(schema: &Value, count: &mut usize) {
        match schema {
            Value::Object(members) => {
                for rule in members
                    .get("x-kubernetes-validations")
                    .iter()
                    .flat_map(|r| r.as_array())
                    .flatten()
                {
                    let text = rule["rule"].as_str().unwrap();
                    if let Err(error) = cel::compiles(text) {
                        panic!("{text}: {error}");
                    }
                    *count += 1;
                }
                members.values().for_each(|v| walk(v, count));
            }
            Value::Array(items) => items.iter().for_each(|v| walk(v, count)),
            _ => {}
        }
    }
    let mut count = 0;
    for version in &Admission::get().versions {
        walk(&version.schema, &mut count);
    }
    assert!(count > 150, "{count}");
}

#[test]
fn rules_see_absent_lists_as_errors() {
    let requirement = json!({"key": "a", "operator": "In"});
    let found = refused(overlay(json!({"requirements": [requirement]})));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with(
        "spec.requirements: requirements with operator 'In' must have a value defined"
    ));
}

#[test]
fn paths_lead_into_lists_and_maps() {
    let found = refused(overlay(json!({
        "requirements": [{"key": "a", "operator": "Exists"}, {"key": "a b", "operator": "Is"}],
        "capacity": {"example.com/x": true}, "weight": 0, "price": "1."})));
    let paths: Vec<&str> = found.iter().map(|f| f.split(": ").next().unwrap()).collect();
    assert_eq!(
        paths,
        [
            "spec.requirements[1].key",
            "spec.requirements[1].operator",
            "spec.capacity[example.com/x]",
            "spec.weight",
            "spec.price"
        ]
    );
}

#[test]
fn changes_are_judged_against_what_was() {
    let claim = |name: &str| {
        json!({"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "metadata": {"name": "c"},
            "spec": {"nodeClassRef": {"group": "g", "kind": "K", "name": name}, "requirements": []}})
    };
    let old = Admission::get().create(claim("a")).unwrap().object;
    let same = Admission::get().update(&old, claim("a")).unwrap();
    assert!(same.findings.is_empty(), "defaults do not count as a change: {:?}", same.findings);
    let changed = Admission::get().update(&old, claim("b")).unwrap();
    assert_eq!(changed.findings[0].to_string(), "spec: spec is immutable");
}

#[test]
fn names_and_labels_are_checked() {
    let mut object = overlay(json!({"requirements": []}));
    object["metadata"] = json!({"name": "A_b", "namespace": "x", "labels": {"a b": "c d"}});
    let paths: Vec<String> =
        refused(object).iter().map(|f| f.split(": ").next().unwrap().to_owned()).collect();
    assert_eq!(paths, ["metadata.name", "metadata.labels[a b]", "metadata.labels[a b]"]);
    let mut object = overlay(json!({"requirements": []}));
    object["metadata"] = json!({});
    assert_eq!(refused(object), ["metadata.name: required: name or generateName"]);
}

/// The end-to-end tests hold the same table against a real API server.
#[test]
fn the_table_has_every_rule_and_agrees_with_us() {
    let mut missing = table::rules_of(&crds::all());
    let mut wrong = Vec::new();
    for case in table::cases() {
        missing.remove(&(
            case.api_version.clone(),
            case.kind.clone(),
            case.path.clone(),
            case.message.clone(),
        ));
        let admit = |object: &Value| {
            let old = case.from.clone().map(|o| Admission::get().create(o).unwrap().object);
            match old {
                Some(old) => Admission::get().update(&old, object.clone()).unwrap(),
                None => Admission::get().create(object.clone()).unwrap(),
            }
        };
        let accepted = admit(&case.accepted);
        if !accepted.findings.is_empty() || !accepted.unknown.is_empty() {
            wrong.push(format!("accepted: {}: {accepted:?}", case.label()));
        }
        let findings = admit(&case.refused).findings;
        if !findings.iter().any(|f| f.path == case.at && f.message.starts_with(&case.message)) {
            wrong.push(format!("refused: {}: {findings:?}", case.label()));
        }
    }
    assert!(missing.is_empty(), "no case for {missing:#?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn values_are_judged_as_the_table_says() {
    let mut wrong = Vec::new();
    for values in table::values() {
        for (object, good) in values.objects() {
            let spec = object["spec"].clone();
            let admitted = Admission::get().create(object).unwrap();
            if admitted.findings.is_empty() != good || !admitted.unknown.is_empty() {
                wrong.push(format!("{} {spec}: {admitted:?}", values.label));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_namespace_is_cleared_where_the_kind_has_none() {
    let mut object = overlay(json!({"requirements": [], "price": "1"}));
    object["metadata"]["namespace"] = "x".into();
    let admitted = Admission::get().create(object).unwrap();
    assert_eq!(admitted.findings, []);
    assert_eq!(admitted.object["metadata"].get("namespace"), None);
}
