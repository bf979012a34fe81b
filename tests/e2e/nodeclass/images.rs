//! Images are found by every kind of term, in their order, and looked for again.

use std::time::Duration;

use serde_json::{Value, json};

use super::{MINUTES, apply, class, class_of, ready, replace, says};
use crate::support::{Controller, World, within};

async fn image(world: &World, id: &str, over: Value) {
    let mut image = json!({"id": id, "name": id, "architecture": "x86_64", "owner": "210987654321", "alias": "someone",
        "created": "2026-01-01"});
    image.as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
    world.admin("images", Some(image)).await;
}

/// A class of images of one's own, by these terms.
fn custom(terms: Value) -> Value {
    class("c", json!({"amiFamily": "AL2", "amiSelectorTerms": terms}))
}

/// Waits until the class's status has these images in that order.
async fn has(world: &World, what: &str, ids: &[&str]) {
    within(MINUTES, &format!("{what}: images {ids:?}"), || async {
        let amis = class_of(world, "c").await.status?.amis;
        let found: Vec<&str> = amis.iter().map(|a| a.id.as_str()).collect();
        (found == ids).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_found_by_every_kind_of_term() {
    let world = World::up().await;
    image(&world, "ami-00000000000000001", json!({"tags": {"team": "x"}})).await;
    let newer = json!({"tags": {"team": "x"}, "created": "2026-02-01"});
    image(&world, "ami-00000000000000002", newer).await;
    let arm = json!({"tags": {"team": "x"}, "architecture": "arm64", "created": "2026-03-01"});
    image(&world, "ami-00000000000000003", arm).await;
    let named = json!({"name": "golden-1", "created": "2026-01-05"});
    image(&world, "ami-00000000000000004", named).await;
    world.admin("parameters", Some(json!({"/team/image": "ami-00000000000000001"}))).await;
    let _controller = Controller::start(&world);
    let [x86, newest, arm, golden] = [
        "ami-00000000000000001",
        "ami-00000000000000002",
        "ami-00000000000000003",
        "ami-00000000000000004",
    ];

    // One image an architecture, the newest; the newest of all first.
    apply(&world, &[custom(json!([{"tags": {"team": "x"}}]))]).await;
    has(&world, "tags", &[arm, newest]).await;
    ready(&world, "c").await;
    let amis = class_of(&world, "c").await.status.unwrap().amis;
    assert_eq!(amis[0].requirements[0].key, "kubernetes.io/arch");
    assert_eq!(amis[0].requirements[0].values, ["arm64"]);
    for (what, terms, ids) in [
        ("any value of a tag", json!([{"tags": {"team": "*"}}]), &[arm, newest][..]),
        ("ids", json!([{"id": x86}, {"id": arm}]), &[arm, x86]),
        (
            "a name of another owner",
            json!([{"name": "golden-*", "owner": "210987654321"}]),
            &[golden],
        ),
        ("a parameter", json!([{"ssmParameter": "/team/image"}]), &[x86]),
        (
            "several terms",
            json!([{"ssmParameter": "/team/image"}, {"tags": {"team": "x"}}]),
            &[arm, newest],
        ),
    ] {
        replace(&world, &custom(terms)).await;
        has(&world, what, ids).await;
    }
    // A name alone is looked for among one's own and Amazon's.
    replace(&world, &custom(json!([{"name": "golden-*"}]))).await;
    let message = "AMISelector did not match any AMIs";
    says(&world, "c", "AMIsReady", "False", "AMINotFound", message).await;
    replace(&world, &custom(json!([{"ssmParameter": "/nobody/image"}]))).await;
    says(&world, "c", "AMIsReady", "False", "AMINotFound", message).await;

    // A newer image is found without a change of the class.
    replace(&world, &custom(json!([{"tags": {"team": "x"}}]))).await;
    has(&world, "tags again", &[arm, newest]).await;
    let latest = "ami-00000000000000005";
    image(&world, latest, json!({"tags": {"team": "x"}, "created": "2026-04-01"})).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    has(&world, "a newer image", &[latest, arm]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aliases_pin_releases_or_follow_the_latest() {
    let world = World::up().await;
    let controller = Controller::start(&world);
    let mut of_release = Vec::new();
    for alias in ["al2023@v20240807", "al2023@v20261101", "al2023@latest", "bottlerocket@v1.50.0"] {
        let name = alias.replace('@', "-");
        apply(&world, &[class(&name, json!({"amiSelectorTerms": [{"alias": alias}]}))]).await;
        ready(&world, &name).await;
        let amis = class_of(&world, &name).await.status.unwrap().amis;
        assert!(amis.len() >= 5, "{alias}: {amis:?}");
        let mut ids: Vec<String> = amis.iter().map(|a| a.id.clone()).collect();
        ids.sort();
        of_release.push(ids);
    }
    assert_ne!(of_release[0], of_release[1]);
    assert_eq!(of_release[1], of_release[2], "the last release is the latest");
    let read = controller.logged("discovered ssm parameter");
    let named = |text: &str| read.iter().filter(|l| l["parameter"] == text).count();
    let base = "/aws/service/eks/optimized-ami/1.35/amazon-linux-2023/x86_64/standard";
    assert_eq!(
        named(&format!("{base}/amazon-eks-node-al2023-x86_64-standard-1.35-v20240807/image_id")),
        1
    );
    assert_eq!(named(&format!("{base}/recommended/image_id")), 1);
    // A release that does not exist has no image.
    apply(&world, &[class("none", json!({"amiSelectorTerms": [{"alias": "al2023@v20200101"}]}))])
        .await;
    controller.says(&["failed to discover any AMIs for alias", "al2023@v20200101"]).await;
    says(&world, "none", "AMIsReady", "False", "AMINotFound", "\"al2023@v20200101\"").await;
    let mended = json!({"amiSelectorTerms": [{"alias": "al2023@v20261101"}]});
    replace(&world, &class("none", mended)).await;
    ready(&world, "none").await;
}
