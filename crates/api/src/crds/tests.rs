use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::{autoscaling, v1alpha1};

/// Set `UPDATE_CRDS=1` to write the files again.
#[test]
fn the_files_are_those_of_the_types() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crds");
    for (name, definition) in all() {
        let path = format!("{folder}/{name}");
        let fresh = to_yaml(&definition);
        if std::env::var_os("UPDATE_CRDS").is_some() {
            std::fs::write(&path, &fresh).unwrap();
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(stored == fresh, "crds/{name} is stale: run make crds");
    }
}

#[test]
fn schemas_hold_nothing_that_the_api_server_refuses() {
    fn walk(value: &Value, path: &str) {
        match value {
            Value::Object(object) => {
                for bad in ["$ref", "oneOf", "const", "nullable"] {
                    assert!(!object.contains_key(bad), "{bad} at {path}");
                }
                for (key, value) in object {
                    walk(value, &format!("{path}/{key}"));
                }
            }
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(i, v)| walk(v, &format!("{path}/{i}")));
            }
            _ => {}
        }
    }
    for (name, definition) in all() {
        for version in definition["spec"]["versions"].as_array().unwrap() {
            walk(&version["schema"], name);
        }
    }
}

/// What an object says after the controllers' types have read and written it.
fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let read: T = serde_json::from_value(object.clone()).unwrap();
    serde_json::to_value(read).unwrap()
}

/// Objects that some other release wrote are read with all that the definitions let them say.
#[test]
fn the_types_know_every_field() {
    let mut seen = 0;
    for object in maximal::objects() {
        let read = match (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap())
        {
            ("karpenter.sh/v1", "NodePool") => through::<v1::NodePool>(&object),
            ("karpenter.sh/v1", "NodeClaim") => through::<v1::NodeClaim>(&object),
            ("karpenter.sh/v1alpha1", _) => through::<v1alpha1::NodeOverlay>(&object),
            ("karpenter.k8s.aws/v1", _) => through::<v1::EC2NodeClass>(&object),
            ("autoscaling.x-k8s.io/v1beta1", _) => through::<autoscaling::CapacityBuffer>(&object),
            // Converted before it is read.
            (version, _) => {
                assert!(version.ends_with("/v1beta1"), "{version}");
                continue;
            }
        };
        assert_eq!(read, object);
        seen += 1;
    }
    assert_eq!(seen, 5);
}

/// NodeClaims of old releases may have conditions without reason and message.
#[test]
fn conditions_may_say_little() {
    let claim = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
        "metadata": {"name": "x"},
        "spec": {"requirements": [], "nodeClassRef": {"group": "g", "kind": "K", "name": "n"}},
        "status": {"conditions": [{"type": "Launched", "status": "True",
            "lastTransitionTime": "2026-01-02T03:04:05Z"}]}});
    let read: v1::NodeClaim = serde_json::from_value(claim).unwrap();
    assert_eq!(read.status.unwrap().conditions[0].type_, "Launched");
}

#[test]
fn the_generator_is_named() {
    for (name, definition) in all() {
        let marks = definition["metadata"]["annotations"].as_object().unwrap();
        let keys: Vec<&str> = marks.keys().map(String::as_str).collect();
        assert_eq!(keys, ["controller-gen.kubebuilder.io/version"], "{name}");
    }
}
