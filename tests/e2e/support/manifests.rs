//! Objects that several tests apply.

use serde_json::{Value, json};

/// An EC2NodeClass of the founding cluster, with other fields laid over its spec.
pub fn node_class(name: &str, over: Value) -> Value {
    let discovery = json!([{"tags": {"karpenter.sh/discovery": "weasel-eks"}}]);
    let mut class = json!({
        "apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass", "metadata": {"name": name},
        "spec": {
            "amiFamily": "AL2",
            "amiSelectorTerms": [{"id": "ami-09c00c2e93ce7bd23"}],
            "role": "KarpenterNodeRole-weasel-eks",
            "subnetSelectorTerms": discovery,
            "securityGroupSelectorTerms": discovery,
        },
    });
    class["spec"].as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
    class
}
