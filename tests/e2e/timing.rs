//! What is to happen at a time happens at that time.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::chain::one_initialized;
use crate::instances::{apply, metric, node_pool, running};
use crate::nodeclass::{class, class_of, ready};
use crate::support::{Controller, World, node_class, until, within};

fn pool(disruption: Value, template: Value) -> Value {
    let mut pool = node_pool(&["t3.large"], &["on-demand"]);
    pool["spec"]["disruption"] = disruption;
    let spec = pool["spec"]["template"]["spec"].as_object_mut().unwrap();
    spec.extend(template.as_object().unwrap().clone());
    pool
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_node_goes_soon_after_it_was_quiet_for_consolidate_after() {
    let world = World::up().await;
    let controller = Controller::start(&world);
    let disruption = json!({"consolidateAfter": "30s"});
    apply(&world, &[node_class("default", json!({})), pool(disruption, json!({}))]).await;
    world.deploy("inflate", 2, "100m", "100Mi").await;
    one_initialized(&world).await;
    running(&world, 2).await;
    // The claim has been looked at by now, and drift asks to look again only in five minutes.
    until("the claim looked at for drift", || async {
        let labels = [r#"controller="nodeclaim.disruption""#, r#"result="requeue_after""#];
        let looked = metric(&controller, "controller_runtime_reconcile_total", &labels).await;
        looked.filter(|n| *n > 0.0)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(35)).await;
    world.scale("inflate", 0);
    let start = Instant::now();
    within(Duration::from_secs(50), "the claim being deleted", || async {
        let claims = world.claims().await;
        claims.iter().all(|c| c.metadata.deletion_timestamp.is_some()).then_some(())
    })
    .await;
    assert!(start.elapsed() >= Duration::from_secs(30), "{:?}", start.elapsed());
}

/// Pods of a Deployment that are not being deleted, and run.
fn of<'a>(pods: &'a [Pod], app: &str) -> Vec<&'a Pod> {
    let is =
        |p: &&Pod| p.metadata.labels.as_ref().and_then(|l| l.get("app")).is_some_and(|a| a == app);
    pods.iter().filter(is).collect()
}

fn names(pods: &[&Pod]) -> Vec<String> {
    pods.iter().filter_map(|p| p.metadata.name.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_may_not_be_evicted_holds_up_neither_its_neighbours_nor_the_deadline() {
    let world = World::up().await;
    let controller = Controller::start(&world);
    let template = json!({"terminationGracePeriod": "40s"});
    let disruption = json!({"consolidateAfter": "Never"});
    apply(&world, &[node_class("default", json!({})), pool(disruption, template)]).await;
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "guarded", "namespace": "default"},
        "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "guarded"}}},
    });
    apply(&world, &[budget]).await;
    world.deploy("guarded", 3, "50m", "50Mi").await;
    world.deploy("free", 4, "50m", "50Mi").await;
    let claim = one_initialized(&world).await.metadata.name.unwrap();
    running(&world, 7).await;
    let pods = world.pods().await;
    let (guarded, free) = (names(&of(&pods, "guarded")), names(&of(&pods, "free")));

    let start = Instant::now();
    world.kubectl(&["delete", "nodeclaim", &claim, "--wait=false"]);
    let there = || async { names(&world.pods().await.iter().collect::<Vec<_>>()) };
    within(Duration::from_secs(15), "the other pods evicted", || async {
        let there = there().await;
        free.iter().all(|p| !there.contains(p)).then_some(())
    })
    .await;
    // The API server refuses each attempt; the waits grow to ten seconds.
    tokio::time::sleep(Duration::from_secs(30).saturating_sub(start.elapsed())).await;
    let there_now = there().await;
    assert!(guarded.iter().all(|p| there_now.contains(p)), "{there_now:?}");
    let name = "karpenter_pods_eviction_requests_total";
    let refused = metric(&controller, name, &[r#"code="429""#]).await.unwrap_or_default();
    assert!((6.0..=40.0).contains(&refused), "{refused} refusals of three pods in 30 s");
    let agreed = metric(&controller, name, &[r#"code="200""#]).await.unwrap_or_default();
    assert!((4.0..=8.0).contains(&agreed), "{agreed}");
    within(Duration::from_secs(20), "the guarded pods deleted", || async {
        let there = there().await;
        guarded.iter().all(|p| !there.contains(p)).then_some(())
    })
    .await;
    let time = start.elapsed();
    assert!((38..46).contains(&time.as_secs()), "{time:?}");
    until("the claim gone", || async {
        let claims = world.claims().await;
        claims.iter().all(|c| c.metadata.name.as_deref() != Some(&claim)).then_some(())
    })
    .await;
    assert!(!world.events("Disrupted").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_held_up_ends_and_the_standby_has_taken_over() {
    let world = World::up().await;
    let elect = [("DISABLE_LEADER_ELECTION", "false")];
    let mut leader = Controller::with(&world, &elect);
    leader.says(&["successfully acquired lease"]).await;
    let standby = Controller::with(&world, &elect);
    standby.says(&["attempting to acquire leader lease"]).await;
    let start = Instant::now();
    leader.hold(true);
    standby.says(&["successfully acquired lease"]).await;
    let took_over = start.elapsed();
    assert!(took_over >= Duration::from_secs(12), "{took_over:?}");
    leader.hold(false);
    let ended = within(Duration::from_secs(5), "the end of the first leader", || {
        std::future::ready(leader.ended())
    })
    .await;
    assert_ne!(ended, 0);
}

/// How much longer a class may take to be ready while calls for others fail: typically, and at
/// worst. Without faults it takes a third of a second, and seconds on a machine that is busy.
const SLACK: Duration = Duration::from_secs(1);
const MOST_SLACK: Duration = Duration::from_secs(5);

fn fault(service: &str, action: &str, contains: &str) -> Value {
    json!({"service": service, "action": action, "contains": contains, "status": 500,
        "code": "InternalError", "message": "An internal error has occurred"})
}

/// Makes a class that needs a launch template of its own, and waits until it is ready.
async fn time_to_ready(world: &World, name: &str) -> Duration {
    let over = json!({"tags": {"team": name}});
    let start = Instant::now();
    apply(world, &[class(name, over)]).await;
    until(&format!("{name} is ready"), || async {
        let list = class_of(world, name).await.status?.conditions;
        list.iter().any(|c| c.type_ == "Ready" && c.status == "True").then_some(())
    })
    .await;
    start.elapsed()
}

/// The times of five classes, one after the other; the shortest first.
async fn times_to_ready(world: &World, name: &str) -> Vec<Duration> {
    let mut times = Vec::new();
    for round in 0..5 {
        times.push(time_to_ready(world, &format!("{name}-{round}")).await);
    }
    times.sort();
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_is_ready_in_seconds_while_calls_for_others_fail() {
    let world = World::up().await;
    let _controller = Controller::start(&world);
    // One class first: what all of them share, such as the cluster's network, is known then.
    apply(&world, &[class("first", json!({}))]).await;
    ready(&world, "first").await;
    let healthy = times_to_ready(&world, "healthy").await;
    for rule in [
        fault("ssm", "GetParameter", "/team/broken"),
        fault("ec2", "DescribeImages", "broken-image"),
        fault("ec2", "CreateLaunchTemplate", "broken-template"),
        fault("ec2", "DescribeSubnets", "broken-subnet"),
    ] {
        world.fault(rule).await;
    }
    let own = |terms: Value| json!({"amiFamily": "AL2023", "amiSelectorTerms": terms});
    apply(
        &world,
        &[
            class("parameter", own(json!([{"ssmParameter": "/team/broken"}]))),
            class("image", own(json!([{"name": "broken-image"}]))),
            class("template", json!({"tags": {"team": "broken-template"}})),
            class("subnet", json!({"subnetSelectorTerms": [{"tags": {"team": "broken-subnet"}}]})),
        ],
    )
    .await;
    for action in ["GetParameter", "DescribeImages", "CreateLaunchTemplate", "DescribeSubnets"] {
        until(&format!("failing calls of {action}"), || async {
            let calls = world.calls(action).await;
            calls.iter().any(|c| c["status"] == 500).then_some(())
        })
        .await;
    }
    let fine = times_to_ready(&world, "fine").await;
    println!("ready after {fine:?}, without faults after {healthy:?}");
    let (typical, worst) = (fine[2], fine[4]);
    assert!(typical < healthy[2] + SLACK, "{fine:?}, without faults {healthy:?}");
    assert!(worst < healthy[4] + MOST_SLACK, "{fine:?}, without faults {healthy:?}");
    for name in ["parameter", "image", "template", "subnet"] {
        // A class whose calls are still being retried has no status yet.
        let list = class_of(&world, name).await.status.unwrap_or_default().conditions;
        assert!(list.iter().all(|c| c.type_ != "Ready" || c.status != "True"), "{name}");
    }
    world.heal().await;
    ready(&world, "template").await;
}
