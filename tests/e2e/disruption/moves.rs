//! What takes the place of nodes: several nodes for several, spot for spot, a new image for an old.

use std::collections::BTreeSet;
use std::time::Duration;

use karpenter::api::v1::NodeClaim;
use serde_json::{Value, json};

use super::{MINUTES, begin, initialized, name, pool, type_of};
use crate::chain::condition;
use crate::support::{Controller, World, node_class, stays, until, within};

/// A pool that consolidates as soon as it can, with other requirements besides its types.
fn eager(name: &str, types: &[&str], more: &[Value]) -> Value {
    let now = json!({"disruption": {"consolidateAfter": "0s", "budgets": [{"nodes": "100%"}]}});
    let mut pool = pool(name, types, now);
    let spec = &mut pool["spec"]["template"]["spec"];
    spec["requirements"].as_array_mut().unwrap().extend(more.iter().cloned());
    pool
}

/// Values of a requirement of a claim.
fn values(claim: &NodeClaim, key: &str) -> Vec<String> {
    let found = claim.spec.requirements.iter().find(|r| r.key == key);
    found.map(|r| r.values.clone()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_become_three_smaller_ones_where_the_pool_allows_several_replacements() {
    let world = World::up().await;
    // So dear that the same pods are cheaper on three small nodes than on any two.
    world.admin("prices", Some(json!({"on-demand": {"m5.2xlarge": 0.9}}))).await;
    let controller = Controller::start(&world);
    begin(&world, &[pool("mixed", &["m5.2xlarge"], json!({}))]).await;
    world.deploy("web", 3, "3", "1Gi").await;
    let old: BTreeSet<String> = initialized(&world, 2).await.iter().map(name).collect();
    until("three pods", || async { (world.running().await == 3).then_some(()) }).await;

    let mut several = eager("mixed", &["m5.xlarge", "m5.2xlarge"], &[]);
    several["metadata"]["annotations"] =
        json!({"karpenter.rs/consolidation-max-replacements": "3"});
    world.apply(&several.to_string()).await;
    within(MINUTES, "three smaller nodes", || async {
        let claims = world.claims().await;
        let small = claims.len() == 3 && claims.iter().all(|c| type_of(c) == "m5.xlarge");
        (small && claims.iter().all(|c| condition(c, "Initialized"))).then_some(())
    })
    .await;
    within(MINUTES, "all pods again", || async { (world.running().await == 3).then_some(()) })
        .await;
    assert!(world.claims().await.iter().all(|c| !old.contains(&name(c))));
    // The first move may leave one large node, which the second splits.
    let lines = controller.logged("disrupting node(s)");
    assert!(lines.len() <= 2, "{lines:?}");
    let last = lines.last().unwrap();
    assert_eq!(last["decision"], "replace");
    assert_eq!(
        (&last["disrupted-node-count"], &last["replacement-node-count"]),
        (&json!(2), &json!(3))
    );
    within(MINUTES, "three instances", || async {
        (world.instances().await.len() == 3).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spot_node_is_replaced_by_a_cheaper_one_that_may_be_any_of_fifteen_types() {
    let world = World::up().await;
    let gates = ("FEATURE_GATES", "SpotToSpotConsolidation=true");
    let controller = Controller::with(&world, &[gates]);
    let spot = |pool: &mut Value, more: &[Value]| {
        let mut requirements = vec![
            json!({"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"]}),
        ];
        requirements.extend(more.iter().cloned());
        pool["spec"]["template"]["spec"]["requirements"] = json!(requirements);
    };
    let large = json!({"key": "node.kubernetes.io/instance-type", "operator": "In",
        "values": ["m5.4xlarge"]});
    let mut confined = pool("spot", &[], json!({}));
    spot(&mut confined, &[large]);
    begin(&world, &[confined]).await;
    world.deploy("large", 1, "10", "1Gi").await;
    let old = initialized(&world, 1).await.remove(0);
    until("the large pod", || async { (world.running().await == 1).then_some(()) }).await;
    world.deploy("small", 1, "500m", "500Mi").await;
    until("both pods", || async { (world.running().await == 2).then_some(()) }).await;
    world.scale("large", 0);
    until("the small pod", || async { (world.running().await == 1).then_some(()) }).await;

    let mut free = eager("spot", &[], &[]);
    spot(
        &mut free,
        &[
            json!({"key": "karpenter.k8s.aws/instance-category", "operator": "In",
                "values": ["c", "m", "r"]}),
            json!({"key": "karpenter.k8s.aws/instance-cpu", "operator": "Lt", "values": ["17"]}),
            json!({"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}),
        ],
    );
    world.apply(&free.to_string()).await;
    let new = within(MINUTES, "another node", || async {
        let mut claims = world.claims().await;
        let other = claims.len() == 1 && name(&claims[0]) != name(&old);
        (other && condition(&claims[0], "Initialized")).then(|| claims.remove(0))
    })
    .await;
    within(MINUTES, "the pod again", || async { (world.running().await == 1).then_some(()) }).await;
    let labels = new.metadata.labels.clone().unwrap_or_default();
    assert_eq!(labels["karpenter.sh/capacity-type"], "spot");
    let types = values(&new, "node.kubernetes.io/instance-type");
    assert_eq!(types.len(), 15, "{types:?}");
    assert!(!types.contains(&"m5.4xlarge".to_owned()), "{types:?}");
    let lines = controller.logged("disrupting node(s)");
    assert_eq!(lines.len(), 1, "one command: {lines:?}");
    assert_eq!(lines[0]["decision"], "replace");
    // One of the fifteen cheapest is not replaced again.
    stays(Duration::from_secs(20), "the node", name(&new), || async {
        world.claims().await.iter().map(name).collect::<Vec<_>>().join(" ")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_an_old_image_are_replaced_one_at_a_time_where_the_budget_says_one() {
    let world = World::up().await;
    let _controller = Controller::start(&world);
    let budget = json!({"disruption": {"consolidateAfter": "Never", "budgets": [{"nodes": "1"}]}});
    begin(&world, &[pool("one", &["t3.medium"], budget)]).await;
    world.deploy("inflate", 3, "1200m", "200Mi").await;
    let old: BTreeSet<String> = initialized(&world, 3).await.iter().map(name).collect();
    until("three pods", || async { (world.running().await == 3).then_some(()) }).await;

    let image = "ami-0000000000000beef";
    world
        .admin(
            "images",
            Some(json!({"id": image, "name": image, "architecture": "x86_64",
                "owner": "210987654321", "alias": "someone", "created": "2026-03-01"})),
        )
        .await;
    let terms = json!({"amiSelectorTerms": [{"id": image}]});
    world.apply(&node_class("default", terms).to_string()).await;
    let mut drifted = BTreeSet::new();
    let begun = std::time::Instant::now();
    loop {
        let claims = world.claims().await;
        let reason = |c: &&NodeClaim| {
            let status = c.status.as_ref();
            let all = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
            all.iter().any(|c| c.type_ == "Drifted" && c.reason == "AMIDrift")
        };
        drifted.extend(claims.iter().filter(reason).map(name));
        // The old node, and its replacement. A node whose instance is terminating counts no more, as in
        // Karpenter.
        let of_budget = claims.iter().filter(|c| !condition(c, "InstanceTerminating")).count();
        assert!(of_budget <= 4, "more replacements than the budget allows: {claims:?}");
        let draining = claims.iter().filter(|c| {
            c.metadata.deletion_timestamp.is_some() && !condition(c, "InstanceTerminating")
        });
        assert!(draining.count() <= 1, "more than the budget allows: {claims:?}");
        let fresh = claims.len() == 3 && claims.iter().all(|c| !old.contains(&name(c)));
        if fresh && claims.iter().all(|c| condition(c, "Initialized")) {
            break;
        }
        assert!(begun.elapsed() < 2 * MINUTES, "still there: {claims:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(drifted, old, "each drifted for its image");
    within(MINUTES, "three instances of the new image", || async {
        let all = world.instances().await;
        let new = all.iter().filter(|i| i.image_id() == Some(image)).count();
        (all.len() == 3 && new == 3).then_some(())
    })
    .await;
    within(MINUTES, "all pods again", || async { (world.running().await == 3).then_some(()) })
        .await;
}
