//! Documented behaviour, fact by fact, as a scenario shows it.

use serde_json::{Value, json};

use super::{base, pod, solved};

pub(super) fn error(out: &Value) -> &str {
    out["unschedulable"][0]["error"].as_str().unwrap_or_default()
}

pub(super) fn pods(out: &Value) -> Vec<Value> {
    let claims = out["nodeClaims"].as_array().unwrap();
    claims.iter().map(|c| c["pods"].clone()).collect()
}

pub(super) fn requirement<'a>(claim: &'a Value, key: &str) -> &'a Value {
    let list = claim["requirements"].as_array().unwrap();
    list.iter().find(|r| r["key"] == key).unwrap_or(&Value::Null)
}

/// The base with one small pod that asks for this besides.
pub(super) fn asking(spec: Value) -> Value {
    let mut document = base();
    let mut one = pod("a", "100m");
    one["metadata"]["labels"] = json!({"app": "a"});
    one["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    document["pods"] = json!([one]);
    document
}

pub(super) fn required(expressions: Value) -> Value {
    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions": expressions}]}}}})
}

#[test]
fn the_reason_names_what_no_type_has() {
    let of = |spec: Value, cpu: &str| {
        let mut document = asking(spec);
        document["pods"][0]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = cpu.into();
        error(&solved(&document)).to_owned()
    };
    assert!(of(json!({}), "7").starts_with("no instance type has enough resources, requirements="));
    assert!(of(json!({}), "7").ends_with("resources={\"cpu\":\"7\",\"pods\":\"1\"}"));
    assert!(of(json!({}), "2M").ends_with(" (CPU request >= 1 Million, m vs M typo?)"));
    let arm = json!({"nodeSelector": {"kubernetes.io/arch": "arm64"}});
    assert!(of(arm.clone(), "1").starts_with("no instance type met all requirements, "));
    assert!(
        of(arm, "7").starts_with(
            "no instance type met the scheduling requirements or had enough resources, "
        )
    );
    // A type counts as large enough only where it is offered.
    let zone = json!({"nodeSelector": {"topology.kubernetes.io/zone": "z"}});
    assert!(of(zone, "1").starts_with(
        "no instance type met the scheduling requirements or had enough resources or had a required offering, "
    ));
}

#[test]
fn labels_that_nobody_has_are_named_with_a_likely_typo() {
    let of = |key: &str| error(&solved(&asking(json!({"nodeSelector": {key: "a"}})))).to_owned();
    assert_eq!(
        of("zone"),
        "incompatible requirements, label \"zone\" does not have known values (typo of \"topology.kubernetes.io/zone\"?)"
    );
    assert_eq!(
        of("example.com/team"),
        "incompatible requirements, label \"example.com/team\" does not have known values"
    );
    // Deprecated keys are today's.
    let old = asking(json!({"nodeSelector": {"failure-domain.beta.kubernetes.io/zone": "a"}}));
    assert_eq!(pods(&solved(&old)), [json!(["n/a"])]);
}

#[test]
fn taints_count_whatever_their_effect_until_relaxed() {
    let mut document = asking(json!({}));
    let taint = |effect: &str| json!([{"key": "dedicated", "value": "x", "effect": effect}]);
    document["nodePools"][0]["spec"]["template"]["spec"]["taints"] = taint("NoExecute");
    assert_eq!(error(&solved(&document)), "did not tolerate taint (taint=dedicated=x:NoExecute)");
    document["nodePools"][0]["spec"]["template"]["spec"]["taints"] = taint("PreferNoSchedule");
    assert_eq!(pods(&solved(&document)), [json!(["n/a"])]);
}

#[test]
fn limits_say_which_pool_is_full() {
    let mut document = asking(json!({}));
    document["nodePools"][0]["spec"]["limits"] = json!({"nodes": "0"});
    assert_eq!(
        error(&solved(&document)),
        "node limits have been exhausted for nodepool (NodePool=default)"
    );
    document["nodePools"][0]["spec"]["limits"] = json!({"cpu": "1"});
    assert_eq!(
        error(&solved(&document)),
        "all available instance types exceed limits for nodepool (NodePool=default)"
    );
    // A second node would exceed what the first, at its largest, may use.
    document["nodePools"][0]["spec"]["limits"] = json!({"cpu": "3"});
    document["pods"] = json!([pod("a", "1500m"), pod("b", "1500m")]);
    let out = solved(&document);
    assert_eq!(pods(&out).len(), 1);
    assert!(error(&out).starts_with("all available instance types exceed limits"));
}

#[test]
fn static_pools_and_no_pools_serve_nobody() {
    let mut document = asking(json!({}));
    document["nodePools"][0]["spec"]["replicas"] = 2.into();
    assert_eq!(error(&solved(&document)), "no dynamic nodepools found");
    document["nodePools"] = json!([]);
    assert_eq!(error(&solved(&document)), "no dynamic nodepools found");
}

#[test]
fn a_pool_whose_own_requirements_leave_nothing_has_no_template() {
    let mut document = asking(json!({}));
    document["nodePools"][0]["spec"]["template"]["spec"]["requirements"] = json!([
        {"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]}]);
    assert_eq!(
        error(&solved(&document)),
        "nodepool requirements filtered out all available instance types"
    );
}

#[test]
fn min_values_are_strict_unless_best_effort_is_asked_for() {
    let mut document = asking(json!({"nodeSelector": {"karpenter.sh/capacity-type": "spot"}}));
    let mut second = document["instanceTypes"][0].clone();
    second["name"] = "c5.large".into();
    second["capacity"]["cpu"] = "1".into();
    document["instanceTypes"].as_array_mut().unwrap().push(second);
    document["nodePools"][0]["spec"]["template"]["spec"]["requirements"] = json!([
        {"key": "node.kubernetes.io/instance-type", "operator": "Exists", "minValues": 2}]);
    assert_eq!(pods(&solved(&document)), [json!(["n/a"])]);
    document["pods"][0]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "1500m".into();
    let out = solved(&document);
    assert!(
        error(&out).starts_with(
            "minValues requirement is not met for label(s) (label(s)=[node.kubernetes.io/instance-type]), requirements="
        ),
        "{}",
        error(&out)
    );
    document["options"] = json!({"minValuesPolicy": "BestEffort"});
    let out = solved(&document);
    let wanted = requirement(&out["nodeClaims"][0], "node.kubernetes.io/instance-type");
    assert_eq!(wanted["minValues"], 1);
    // The pool itself may ask for more than there is.
    document["options"] = json!({});
    document["nodePools"][0]["spec"]["template"]["spec"]["requirements"][0]["minValues"] = 3.into();
    assert_eq!(
        error(&solved(&document)),
        "nodepool requirements filtered out all available instance types"
    );
}

/// A reserved offering with so many instances left.
fn with_reservation(mut document: Value, left: i64) -> Value {
    let offerings = document["instanceTypes"][0]["offerings"].as_array_mut().unwrap();
    offerings.push(json!({"zone": "a", "capacityType": "reserved", "price": 0.0001,
        "reservationCapacity": left,
        "labels": {"karpenter.k8s.aws/capacity-reservation-id": "cr-1"}}));
    document
}

#[test]
fn reserved_capacity_is_taken_whole_or_waited_for() {
    let mut document = with_reservation(base(), 1);
    document["pods"] = json!([pod("a", "1500m"), pod("b", "1500m")]);
    let out = solved(&document);
    let claim = &out["nodeClaims"][0];
    assert_eq!(pods(&out), [json!(["n/a"])]);
    assert_eq!(requirement(claim, "karpenter.sh/capacity-type")["values"], json!(["reserved"]));
    let id = requirement(claim, "karpenter.k8s.aws/capacity-reservation-id");
    assert_eq!(id["values"], json!(["cr-1"]));
    assert_eq!(
        error(&out),
        "one or more instance types with compatible reserved offerings are available, but could not be reserved"
    );
    // Without the gate a reserved offering is one like any other.
    document["options"] = json!({"featureGates": {"ReservedCapacity": false}});
    assert_eq!(pods(&solved(&document)).len(), 2);
}

#[test]
fn topology_says_what_it_counted() {
    let apart = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "topology.kubernetes.io/zone",
            "labelSelector": {"matchLabels": {"app": "other"}}}]}}});
    assert_eq!(
        error(&solved(&asking(apart))),
        "unsatisfiable topology constraint for pod affinity, key=topology.kubernetes.io/zone (counts = a: 0, podDomains = topology.kubernetes.io/zone Exists, nodeDomains = topology.kubernetes.io/zone Exists"
    );
    // Unknown keys have no domains.
    let unknown = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "example.com/rack",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}]});
    assert!(error(&solved(&asking(unknown.clone()))).starts_with(
        "unsatisfiable topology constraint for topology spread, key=example.com/rack"
    ));
    let mut soft = unknown;
    soft["topologySpreadConstraints"][0]["whenUnsatisfiable"] = "ScheduleAnyway".into();
    assert_eq!(pods(&solved(&asking(soft))), [json!(["n/a"])]);
}

#[test]
fn preferences_are_required_until_they_cannot_be_had() {
    let zone = |z: &str, weight: i64| {
        json!({"weight": weight, "preference": {"matchExpressions": [
            {"key": "topology.kubernetes.io/zone", "operator": "In", "values": [z]}]}})
    };
    let prefer = |list: Value| {
        asking(json!({"affinity": {"nodeAffinity":
            {"preferredDuringSchedulingIgnoredDuringExecution": list}}}))
    };
    let mut document = prefer(json!([zone("gone", 10), zone("b", 5)]));
    let offerings = document["instanceTypes"][0]["offerings"].as_array_mut().unwrap();
    offerings.push(json!({"zone": "b", "capacityType": "spot", "price": 9.0}));
    let out = solved(&document);
    assert_eq!(out["nodeClaims"][0]["cheapest"]["zone"], "b");
    document["options"] = json!({"preferencePolicy": "Ignore"});
    assert_eq!(solved(&document)["nodeClaims"][0]["cheapest"]["zone"], "a");
}

#[test]
fn required_terms_are_alternatives_in_order() {
    let term = |z: &str| {
        json!({"matchExpressions": [
            {"key": "topology.kubernetes.io/zone", "operator": "In", "values": [z]}]})
    };
    let spec = json!({"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [term("gone"), term("a")]}}}});
    assert_eq!(pods(&solved(&asking(spec))), [json!(["n/a"])]);
    let fields = json!({"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["x"]}]}]}}}});
    assert_eq!(
        error(&solved(&asking(fields))),
        "ignoring pod, node selector term with matchFields is not supported"
    );
    let out = json!([{"key": "karpenter.sh/nodepool", "operator": "DoesNotExist"}]);
    assert!(error(&solved(&asking(required(out)))).starts_with(
        "ignoring pod, configured to not run on a Karpenter provisioned node (requirement="
    ));
}

/// The base with a claim for a volume that is in a zone, and a node there that attaches so many.
fn with_volume(zone: &str, limit: u64) -> Value {
    let mut document = asking(json!({"volumes": [
        {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}));
    document["objects"] = json!([
        {"kind": "PersistentVolumeClaim", "metadata": {"name": "c", "namespace": "n",
            "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"volumeName": "v"}},
        {"kind": "PersistentVolume", "metadata": {"name": "v"}, "spec": {
            "csi": {"driver": "ebs.csi.aws.com", "volumeHandle": "v"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "topology.ebs.csi.aws.com/zone", "operator": "In", "values": [zone]}]}]}}}},
        {"kind": "CSINode", "metadata": {"name": "n1"}, "spec": {"drivers": [
            {"name": "ebs.csi.aws.com", "nodeID": "n1", "allocatable": {"count": limit}}]}}]);
    document["nodes"] = json!([{"node": {"metadata": {"name": "n1", "labels": {
        "topology.kubernetes.io/zone": "a"}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "20"}}}}]);
    document
}

#[test]
fn volumes_tie_pods_to_their_zone_and_to_nodes_that_can_attach_them() {
    let out = solved(&with_volume("a", 1));
    assert_eq!(out["existingNodes"], json!([{"name": "n1", "pods": ["n/a"]}]));
    assert_eq!(pods(&solved(&with_volume("a", 0))), [json!(["n/a"])]);
    let out = solved(&with_volume("z", 1));
    assert_eq!(out["existingNodes"], json!([]));
    assert!(error(&out).starts_with("no instance type met"), "{}", error(&out));
    let mut document = with_volume("z", 1);
    document["nodePools"][0]["spec"]["template"]["spec"]["requirements"] = json!([
        {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a"]}]);
    assert_eq!(
        error(&solved(&document)),
        "incompatible volume requirements, key topology.kubernetes.io/zone, topology.kubernetes.io/zone In [z] not in topology.kubernetes.io/zone In [a]"
    );
}

#[test]
fn default_spread_constraints_reach_pods_that_a_service_selects() {
    let mut document = asking(json!({}));
    document["options"] = json!({"schedulerConfig": "podTopologySpread:\n  defaultConstraints:\n  - {maxSkew: 1, topologyKey: example.com/rack, whenUnsatisfiable: DoNotSchedule}\n"});
    assert_eq!(pods(&solved(&document)), [json!(["n/a"])]);
    document["objects"] = json!([{"kind": "Service", "metadata": {"name": "s", "namespace": "n"},
        "spec": {"selector": {"app": "a"}}}]);
    assert!(error(&solved(&document)).contains("key=example.com/rack"));
}

#[test]
fn host_ports_keep_pods_apart() {
    let mut document = base();
    let with_port = |name: &str, ip: Option<&str>| {
        let mut one = pod(name, "100m");
        one["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 80}]);
        if let Some(ip) = ip {
            one["spec"]["containers"][0]["ports"][0]["hostIP"] = ip.into();
        }
        one
    };
    document["pods"] = json!([with_port("a", None), with_port("b", None)]);
    assert_eq!(pods(&solved(&document)).len(), 2);
    document["pods"] = json!([with_port("a", Some("10.0.0.1")), with_port("b", Some("10.0.0.2"))]);
    assert_eq!(pods(&solved(&document)).len(), 1);
    document["pods"] = json!([with_port("a", Some("10.0.0.1")), with_port("b", Some("::"))]);
    assert_eq!(pods(&solved(&document)).len(), 2);
    // A daemon's port rules its types out.
    document["pods"] = json!([with_port("a", None)]);
    document["daemonSetPods"] = json!([with_port("d", None)]);
    assert!(error(&solved(&document)).starts_with("no instance type met"));
}

#[test]
fn daemons_with_claims_on_devices_count_only_with_dynamic_resources() {
    let mut document = asking(json!({}));
    document["pods"][0]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "1".into();
    let mut daemon = pod("d", "1500m");
    daemon["spec"]["resourceClaims"] = json!([{"name": "x", "resourceClaimName": "c"}]);
    document["daemonSetPods"] = json!([daemon]);
    assert_eq!(pods(&solved(&document)), [json!(["n/a"])]);
    document["options"] = json!({"featureGates": {"DynamicResources": true}});
    assert!(error(&solved(&document)).starts_with("no instance type has enough resources"));
}

#[test]
fn nodes_on_their_way_take_pods_without_their_passing_taints() {
    let mut document = asking(json!({}));
    document["nodes"] = json!([{
        "node": {"metadata": {"name": "n1", "labels": {"karpenter.sh/nodepool": "default",
            "karpenter.sh/registered": "true"}},
            "spec": {"providerID": "p", "taints": [
                {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"},
                {"key": "start", "effect": "NoSchedule"},
                {"key": "readiness.k8s.io/x", "effect": "NoSchedule"}]},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "20"}}},
        "nodeClaim": {"metadata": {"name": "c1"}, "spec": {"nodeClassRef":
            {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "d"},
            "requirements": [], "startupTaints": [{"key": "start", "effect": "NoSchedule"}]},
            "status": {"providerID": "p"}}}]);
    assert_eq!(solved(&document)["existingNodes"][0]["name"], "n1");
    // Once initialized, every taint counts.
    document["nodes"][0]["node"]["metadata"]["labels"]["karpenter.sh/initialized"] = "true".into();
    assert_eq!(solved(&document)["existingNodes"], json!([]));
}
