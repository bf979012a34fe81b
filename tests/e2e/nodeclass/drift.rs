//! Nodes drift for each reason that there is, and for nothing else.

use std::time::Duration;

use serde_json::json;

use super::{MINUTES, apply, class, class_of, find, joins, pod, pool, replace};
use crate::chain::condition;
use crate::support::{Controller, World, stays, until, within};

/// Waits until the claim has drifted for that reason.
async fn drifts(world: &World, reason: &str) {
    within(MINUTES, &format!("drift for {reason}"), || async {
        let claims = world.claims().await;
        let list = &claims.first()?.status.as_ref()?.conditions;
        find(list, "Drifted").filter(|c| c.status == "True" && c.reason == reason).map(|_| ())
    })
    .await;
}

/// Waits until the claim has not drifted.
async fn settles(world: &World) {
    within(MINUTES, "no drift", || async {
        let claims = world.claims().await;
        let list = &claims.first()?.status.as_ref()?.conditions;
        find(list, "Drifted").is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_drifts_for_its_reason() {
    let world = World::up().await;
    let mut controller = Controller::start(&world);
    apply(
        &world,
        &[class("c", json!({})), pool("c", "c", "linux", "amd64"), pod("a", "c", "linux")],
    )
    .await;
    joins(&world, "c").await;
    settles(&world).await;

    let group = world
        .ec2
        .create_security_group()
        .group_name("another")
        .description("another")
        .vpc_id(&world.env["WORLD_VPC"])
        .send()
        .await
        .unwrap();
    let zone =
        world.instances().await[0].placement().unwrap().availability_zone().unwrap().to_owned();
    let subnets = class_of(&world, "c").await.status.unwrap().subnets;
    let elsewhere = subnets.iter().find(|s| s.zone != zone).unwrap();
    for (reason, over) in [
        ("AMIDrift", json!({"amiSelectorTerms": [{"alias": "al2023@v20240807"}]})),
        ("SecurityGroupDrift", json!({"securityGroupSelectorTerms": [{"id": group.group_id()}]})),
        ("SubnetDrift", json!({"subnetSelectorTerms": [{"id": elsewhere.id}]})),
        ("NodeClassDrift", json!({"tags": {"team": "x"}})),
        ("NodeClassDrift", json!({"userData": "#!/bin/bash\necho hello\n"})),
        ("NodeClassDrift", json!({"kubelet": {"maxPods": 20}})),
        ("NodeClassDrift", json!({"detailedMonitoring": true})),
    ] {
        replace(&world, &class("c", over)).await;
        drifts(&world, reason).await;
        replace(&world, &class("c", json!({}))).await;
        settles(&world).await;
    }

    // An older release stamped other hashes of another version: no reason to replace anything.
    controller.kill();
    let claim = world.claims().await[0].metadata.name.clone().unwrap();
    for object in ["ec2nodeclass/c".to_owned(), format!("nodeclaim/{claim}")] {
        world.kubectl(&[
            "annotate",
            "--overwrite",
            &object,
            "karpenter.k8s.aws/ec2nodeclass-hash=1",
            "karpenter.k8s.aws/ec2nodeclass-hash-version=v5",
        ]);
    }
    let _newer = Controller::start(&world);
    until("the claim is stamped anew", || async {
        let marks = world.claims().await[0].metadata.annotations.clone()?;
        let class = class_of(&world, "c").await.metadata.annotations?;
        let keys =
            ["karpenter.k8s.aws/ec2nodeclass-hash", "karpenter.k8s.aws/ec2nodeclass-hash-version"];
        (marks[keys[1]] == "v6" && keys.iter().all(|k| marks[*k] == class[*k])).then_some(())
    })
    .await;
    stays(Duration::from_secs(5), "drift", false, || async {
        condition(&world.claims().await[0], "Drifted")
    })
    .await;
    assert_eq!(world.instances().await.len(), 1);
}

/// A pool whose nodes may be in reserved capacity.
fn reserving(name: &str) -> serde_json::Value {
    let mut pool = pool(name, name, "linux", "amd64");
    let requirements = pool["spec"]["template"]["spec"]["requirements"].as_array_mut().unwrap();
    let capacity = requirements.iter_mut().find(|r| r["key"] == "karpenter.sh/capacity-type");
    capacity.unwrap()["values"] = json!(["reserved"]);
    pool
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_that_is_not_selected_any_more_is_drift() {
    let world = World::up().await;
    for id in ["cr-0000000000000001", "cr-0000000000000002"] {
        let reservation = json!({"CapacityReservationId": id, "InstanceType": "m5.large",
            "AvailabilityZone": "us-east-1b", "TotalInstanceCount": 1});
        world.admin("capacity-reservations", Some(reservation)).await;
    }
    let _controller = Controller::start(&world);
    let selecting =
        |id: &str| class("c", json!({"capacityReservationSelectorTerms": [{"id": id}]}));
    let first = selecting("cr-0000000000000001");
    apply(&world, &[first.clone(), reserving("c"), pod("a", "c", "linux")]).await;
    joins(&world, "c").await;
    let instance = &world.instances().await[0];
    assert_eq!(instance.capacity_reservation_id(), Some("cr-0000000000000001"));
    let status = class_of(&world, "c").await.status.unwrap();
    let known: Vec<_> = status.capacity_reservations.iter().map(|r| r.id.as_str()).collect();
    assert_eq!(known, ["cr-0000000000000001"]);
    assert_eq!(status.capacity_reservations[0].state, "active");
    settles(&world).await;

    replace(&world, &selecting("cr-0000000000000002")).await;
    drifts(&world, "CapacityReservationDrift").await;
    replace(&world, &first).await;
    settles(&world).await;
    replace(&world, &class("c", json!({}))).await;
    drifts(&world, "CapacityReservationDrift").await;
    assert_eq!(world.instances().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placement_group_that_was_made_anew_is_drift() {
    let world = World::up().await;
    let group = |id: &str| json!({"GroupName": "g", "GroupId": id, "Strategy": "spread"});
    world.admin("placement-groups", Some(group("pg-00000000000000001"))).await;
    let _controller = Controller::start(&world);
    let over = json!({"placementGroupSelector": {"name": "g"}});
    apply(&world, &[class("c", over), pool("c", "c", "linux", "amd64"), pod("a", "c", "linux")])
        .await;
    let claim = joins(&world, "c").await;
    let labels = claim.metadata.labels.unwrap();
    assert_eq!(labels["karpenter.k8s.aws/placement-group-id"], "pg-00000000000000001");
    settles(&world).await;

    world.admin("placement-groups", Some(group("pg-00000000000000002"))).await;
    let name = claim.metadata.name.unwrap();
    let mut looks = 0;
    within(MINUTES, "drift of the placement group", || {
        looks += 1;
        let mark = format!("looks={looks}");
        // Whatever happens to a claim, it is looked at; else that takes five minutes.
        world.kubectl(&["annotate", "--overwrite", "nodeclaim", &name, &mark]);
        let world = &world;
        async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let claims = world.claims().await;
            let list = &claims.first()?.status.as_ref()?.conditions;
            let drifted = find(list, "Drifted").filter(|c| c.status == "True")?;
            (drifted.reason == "PlacementGroupDrift").then_some(())
        }
    })
    .await;
}
