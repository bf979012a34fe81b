//! Kubelet settings that are expressions, and the conditions of classes as metrics and events.

use serde_json::json;

use super::{apply, class, joins, pod, pool, ready, replace, says};
use crate::support::{Controller, World, until};

#[tokio::test(flavor = "multi_thread")]
async fn kubelet_expressions_are_worked_out_for_each_type() {
    let world = World::up().await;
    let controller = Controller::with(&world, &[("AWS_FEATURE_GATES", "NodeClassCEL=true")]);
    let kubelet = json!({"maxPods": "min(max_pods, vcpus * 5)",
        "kubeReserved": {"cpu": "vcpus * 31", "memory": "255 + 11 * max_pods"}});
    apply(
        &world,
        &[
            class("c", json!({"kubelet": kubelet})),
            pool("c", "c", "linux", "amd64"),
            pod("a", "c", "linux"),
        ],
    )
    .await;
    joins(&world, "c").await;
    let node = &world.nodes().await[0].status.clone().unwrap();
    assert_eq!(node.capacity.as_ref().unwrap()["pods"].0, "10");
    // 2 cores less 62m, rounded up to 70m.
    assert_eq!(node.allocatable.as_ref().unwrap()["cpu"].0, "1930m");
    assert!(controller.logged("failed to evaluate kubelet resource expression").is_empty());

    for (kubelet, reason, part) in [
        (json!({"maxPods": "cores * 5"}), "KubeletExpressionInvalid", "field=spec.kubelet.maxPods"),
        (
            json!({"systemReserved": {"cpu": "instance_type"}}),
            "KubeletExpressionInvalid",
            "field=spec.kubelet.systemReserved[cpu]",
        ),
        (
            json!({"kubeReserved": {"cpu": "100 - vcpus * 60"}}),
            "KubeletExpressionEvaluationFailed",
            "field=spec.kubelet.kubeReserved[cpu]",
        ),
        (
            json!({"maxPods": "1 / (vcpus - 2)"}),
            "KubeletExpressionEvaluationFailed",
            "field=spec.kubelet.maxPods",
        ),
    ] {
        replace(&world, &class("c", json!({"kubelet": kubelet}))).await;
        says(&world, "c", "ValidationSucceeded", "False", reason, part).await;
    }
    replace(&world, &class("c", json!({"kubelet": {"maxPods": "vcpus * 20"}}))).await;
    ready(&world, "c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_are_refused_where_their_gate_is_off() {
    let world = World::up().await;
    let _controller = Controller::start(&world);
    apply(&world, &[class("c", json!({"kubelet": {"maxPods": "vcpus * 5"}}))]).await;
    says(
        &world,
        "c",
        "ValidationSucceeded",
        "False",
        "KubeletExpressionsDisabled",
        "spec.kubelet contains a CEL expression, but the NodeClassCEL feature gate is disabled",
    )
    .await;
    replace(&world, &class("c", json!({"kubelet": {"maxPods": 10}}))).await;
    ready(&world, "c").await;
}

/// Samples of the metrics endpoint that begin with that name and have all of these in them.
async fn samples(controller: &Controller, name: &str, parts: &[&str]) -> Vec<String> {
    let url = format!("http://127.0.0.1:{}", controller.metrics_port);
    let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let text = client.request_text(request).await.unwrap();
    let named = |l: &&str| l.split('{').next() == Some(name);
    let lines = text.lines().filter(named).filter(|l| parts.iter().all(|p| l.contains(p)));
    lines.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_are_metrics_and_their_changes_events() {
    let world = World::up().await;
    let controller = Controller::with(&world, &[("DISABLE_CLUSTER_STATE_OBSERVABILITY", "true")]);
    let lost = json!({"subnetSelectorTerms": [{"id": "subnet-0123456789abcdef0"}]});
    apply(&world, &[class("c", lost)]).await;
    says(&world, "c", "SubnetsReady", "False", "SubnetsNotFound", "SubnetSelector").await;
    let labels = ["name=\"c\"", "type=\"SubnetsReady\"", "reason=\"SubnetsNotFound\""];
    let kind = ["group=\"karpenter.k8s.aws\"", "kind=\"EC2NodeClass\""];
    until("the condition as a metric", || async {
        let own = "operator_ec2nodeclass_status_condition_count";
        let own = samples(&controller, own, &labels).await;
        let of_all = [labels.as_slice(), kind.as_slice()].concat();
        let of_all = samples(&controller, "operator_status_condition_count", &of_all).await;
        let one = |list: &[String]| list.len() == 1 && list[0].ends_with(" 1");
        (one(&own) && one(&of_all)).then_some(())
    })
    .await;
    replace(&world, &class("c", json!({}))).await;
    ready(&world, "c").await;
    until("the change as a metric", || async {
        let name = "operator_ec2nodeclass_status_condition_transitions_total";
        let parts = ["type=\"SubnetsReady\"", "status=\"True\""];
        let changed = !samples(&controller, name, &parts).await.is_empty();
        let name = "operator_ec2nodeclass_status_condition_count";
        (changed && samples(&controller, name, &labels).await.is_empty()).then_some(())
    })
    .await;
    let told = until("an event of the change", || async {
        let events = world.events("SubnetsReady").await;
        events.into_iter().find(|e| e.contains("False -> True"))
    })
    .await;
    assert_eq!(
        told,
        "Status condition transitioned, Type: SubnetsReady, Status: False -> True, Reason: SubnetsReady"
    );
    world.kubectl(&["delete", "ec2nodeclass", "c"]);
    until("the end of the series", || async {
        let name = "operator_ec2nodeclass_status_condition_count";
        samples(&controller, name, &["name=\"c\""]).await.is_empty().then_some(())
    })
    .await;
    let ended = until("an event of the end", || async {
        world.events("Finalized").await.into_iter().next()
    })
    .await;
    assert_eq!(ended, "Finalized karpenter.k8s.aws/termination");
}
