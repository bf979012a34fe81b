use super::*;

fn class(family: &str, kubelet: Value) -> EC2NodeClass {
    EC2NodeClass::new(
        "c",
        serde_json::from_value(json!({"amiFamily": family, "kubelet": kubelet})).unwrap(),
    )
}

fn problems(kubelet: Value) -> Vec<String> {
    check(&class("AL2023", kubelet))
}

#[test]
fn good_settings_pass() {
    assert!(problems(json!({})).is_empty());
    let all = json!({
        "clusterDNS": ["10.0.0.10"], "maxPods": 20, "podsPerCore": 2, "cpuCFSQuota": true,
        "systemReserved": {"cpu": "100m", "pid": "100"},
        "kubeReserved": {"memory": "1Gi", "ephemeral-storage": "vcpus * 2"},
        "evictionHard": {"memory.available": "5%", "nodefs.available": "1Gi"},
        "evictionSoft": {"memory.available": "10.5%"},
        "evictionSoftGracePeriod": {"memory.available": "1m30s"},
        "evictionMaxPodGracePeriod": 60, "imageGCHighThresholdPercent": 85,
        "imageGCLowThresholdPercent": 80, "topologyManagerPolicy": "single-numa-node",
        "featureGates": {"A": true}, "authentication": {"webhook": {"enabled": true}},
        "reservedMemory": [{"numaNode": 0, "limits": {"memory": "1Gi"}}],
        "logging": {"format": "json", "verbosity": 3}, "syncFrequency": "1m",
    });
    assert_eq!(problems(all), Vec::<String>::new());
    assert!(problems(json!({"maxPods": "vcpus * 8"})).is_empty());
}

#[test]
fn a_wrong_type_is_reported_alone() {
    for (settings, want) in [
        (
            json!({"podsPerCore": "2", "unknown": 1}),
            "spec.kubelet: podsPerCore: expected a 32-bit integer, found \"2\"",
        ),
        (
            json!({"clusterDNS": "10.0.0.10"}),
            "spec.kubelet: clusterDNS: expected a list, found \"10.0.0.10\"",
        ),
        (json!({"cpuCFSQuota": 1}), "spec.kubelet: cpuCFSQuota: expected true or false, found 1"),
        (
            json!({"syncFrequency": "soon"}),
            "spec.kubelet: syncFrequency: expected a duration such as 1m30s, found \"soon\"",
        ),
        (
            json!({"kubeReserved": {"cpu": 1}}),
            "spec.kubelet: kubeReserved[cpu]: expected text, found 1",
        ),
        (
            json!({"maxPods": 4_000_000_000_u64}),
            "spec.kubelet: maxPods: expected a 32-bit integer, found 4000000000",
        ),
        (
            json!({"authentication": {"webhook": {"enabled": "yes"}}}),
            "spec.kubelet: authentication.webhook.enabled: expected true or false, found \"yes\"",
        ),
    ] {
        assert_eq!(problems(settings), [want]);
    }
}

#[test]
fn every_unknown_field_is_reported() {
    assert_eq!(
        problems(json!({"maxpods": 1, "authentication": {"x": 1}, "maxPods": 5})),
        [
            "spec.kubelet: unknown field \"authentication.x\"",
            "spec.kubelet: unknown field \"maxpods\"",
        ]
    );
}

#[test]
fn values_must_make_sense() {
    for (settings, part) in [
        (json!({"registerWithTaints": []}), "spec.kubelet.registerWithTaints: can't be set"),
        (json!({"evictionHard": {"memory": "5%"}}), "spec.kubelet.evictionHard[memory]"),
        (
            json!({"evictionHard": {"memory.available": "101%"}}),
            "spec.kubelet.evictionHard[memory.available]",
        ),
        (
            json!({"evictionHard": {"memory.available": "-1Gi"}}),
            "spec.kubelet.evictionHard[memory.available]",
        ),
        (
            json!({"evictionMinimumReclaim": {"pid.available": "much"}}),
            "spec.kubelet.evictionMinimumReclaim[pid.available]",
        ),
        (
            json!({"evictionSoft": {"memory.available": "5%"}}),
            "spec.kubelet.evictionSoft[memory.available]: no matching entry in evictionSoftGracePeriod",
        ),
        (
            json!({"evictionSoftGracePeriod": {"memory.available": "1m"}}),
            "spec.kubelet.evictionSoftGracePeriod[memory.available]: no matching entry in evictionSoft",
        ),
        (
            json!({"evictionSoft": {"memory.available": "5%"}, "evictionSoftGracePeriod": {"memory.available": "-1m"}}),
            "spec.kubelet.evictionSoftGracePeriod[memory.available]",
        ),
        (json!({"kubeReserved": {"gpu": "1"}}), "spec.kubelet.kubeReserved[gpu]"),
        (json!({"systemReserved": {"cpu": "-1"}}), "spec.kubelet.systemReserved[cpu]"),
        (json!({"imageGCHighThresholdPercent": 101}), "spec.kubelet.imageGCHighThresholdPercent"),
        (
            json!({"imageGCHighThresholdPercent": 50, "imageGCLowThresholdPercent": 50}),
            "spec.kubelet.imageGCHighThresholdPercent",
        ),
        (json!({"podsPerCore": -1}), "spec.kubelet.podsPerCore"),
        (json!({"evictionMaxPodGracePeriod": -1}), "spec.kubelet.evictionMaxPodGracePeriod"),
        (json!({"maxPods": -1}), "spec.kubelet.maxPods"),
    ] {
        let found = problems(settings.clone());
        assert_eq!(found.len(), 1, "{settings}: {found:?}");
        assert!(found[0].starts_with(part), "{settings}: {found:?}");
    }
}

#[test]
fn families_say_what_they_would_drop() {
    let settings =
        json!({"topologyManagerPolicy": "none", "podsPerCore": 1, "clusterDNS": ["a", "b"]});
    assert_eq!(unsupported(&class("AL2023", settings.clone())), None);
    assert_eq!(unsupported(&class("Custom", settings.clone())), None);
    assert_eq!(
        unsupported(&class("Bottlerocket", settings.clone())).unwrap(),
        "spec.kubelet has fields not applied by the Bottlerocket AMI family that would be silently dropped: podsPerCore, topologyManagerPolicy; spec.kubelet.clusterDNS: the Bottlerocket AMI family doesn't accept multiple entries, only one, but 2 were set"
    );
    assert_eq!(
        unsupported(&class(
            "Windows2022",
            json!({"topologyManagerPolicy": "none", "podsPerCore": 1})
        ))
        .unwrap(),
        "spec.kubelet has fields not applied by the Windows2022 AMI family that would be silently dropped: topologyManagerPolicy"
    );
}

#[test]
fn expressions_are_found_and_left_out() {
    let class = class(
        "AL2023",
        json!({"maxPods": "vcpus * 8", "kubeReserved": {"cpu": "vcpus * 10", "memory": "1Gi"},
            "systemReserved": {"cpu": "min(1, 2)"}}),
    );
    let fields: Vec<String> = expressions(&class).into_iter().map(|(field, _)| field).collect();
    assert_eq!(
        fields,
        [
            "spec.kubelet.maxPods",
            "spec.kubelet.kubeReserved[cpu]",
            "spec.kubelet.systemReserved[cpu]"
        ]
    );
    let kind = InstanceType {
        capacity: [(Name::Pods, 29)].into_iter().collect(),
        ..InstanceType::default()
    };
    let cluster = Cluster { dns_ip: Some("10.0.0.10".to_owned()), ..Cluster::default() };
    assert_eq!(
        Value::Object(resolve(&cluster, &class, &kind)),
        json!({"maxPods": 29, "kubeReserved": {"memory": "1Gi"}, "clusterDNS": ["10.0.0.10"]})
    );
}
