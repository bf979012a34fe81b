//! What is left over is removed, and what is others' stays.

use k8s_openapi::api::core::v1::Event;
use karpenter::api::v1::EC2NodeClass;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use super::{AL2, CLUSTER, MINUTES, apply, class, class_of, joins, pod, pool, replace};
use crate::chain::one_initialized;
use crate::support::{Controller, World, until, within};

#[tokio::test(flavor = "multi_thread")]
async fn orphans_of_ours_are_removed_and_others_never() {
    let world = World::up().await;
    let iam = aws_sdk_iam::Client::new(&world.aws);
    let template = |name: &'static str, cluster: &'static str| {
        use aws_sdk_ec2::types::{RequestLaunchTemplateData, ResourceType, Tag, TagSpecification};
        world
            .ec2
            .create_launch_template()
            .launch_template_name(name)
            .launch_template_data(RequestLaunchTemplateData::builder().image_id(AL2).build())
            .tag_specifications(
                TagSpecification::builder()
                    .resource_type(ResourceType::LaunchTemplate)
                    .tags(Tag::builder().key("eks:eks-cluster-name").value(cluster).build())
                    .build(),
            )
            .send()
    };
    template("karpenter.k8s.aws/1", CLUSTER).await.unwrap();
    template("karpenter.k8s.aws/2", "another").await.unwrap();
    template("mine", CLUSTER).await.unwrap();
    let profile = |name: &'static str, path: &'static str| {
        iam.create_instance_profile().instance_profile_name(name).path(path).send()
    };
    profile("orphan", "/karpenter/us-east-1/weasel-eks/11111111-1111/").await.unwrap();
    profile("of-another-cluster", "/karpenter/us-east-1/another/1/").await.unwrap();
    profile("of-another-region", "/karpenter/us-west-2/weasel-eks/1/").await.unwrap();
    profile("of-the-user", "/").await.unwrap();
    let profiles = || async {
        let found = iam.list_instance_profiles().send().await.unwrap();
        let mut names: Vec<String> = found
            .instance_profiles()
            .iter()
            .map(|p| p.instance_profile_name().to_owned())
            .collect();
        names.sort();
        names
    };

    let _controller = Controller::start(&world);
    apply(
        &world,
        &[class("c", json!({})), pool("c", "c", "linux", "amd64"), pod("a", "c", "linux")],
    )
    .await;
    joins(&world, "c").await;
    until("the orphaned profile is removed", || async {
        (!profiles().await.contains(&"orphan".to_owned())).then_some(())
    })
    .await;
    within(MINUTES, "the orphaned template is removed", || async {
        let names = world.launch_templates().await;
        (!names.contains(&"karpenter.k8s.aws/1".to_owned())).then_some(())
    })
    .await;

    // A new role makes a new profile; the old one stays while it may be in use.
    let first = class_of(&world, "c").await.status.unwrap().instance_profile.unwrap();
    let trust = json!({"Version": "2012-10-17", "Statement": []}).to_string();
    iam.create_role()
        .role_name("another-role")
        .assume_role_policy_document(trust)
        .send()
        .await
        .unwrap();
    replace(&world, &class("c", json!({"role": "another-role"}))).await;
    let second = until("a profile for the new role", || async {
        class_of(&world, "c").await.status?.instance_profile.filter(|p| *p != first)
    })
    .await;
    assert!(profiles().await.contains(&first));
    let found = iam.get_instance_profile().instance_profile_name(&second).send().await.unwrap();
    assert_eq!(found.instance_profile().unwrap().roles()[0].role_name(), "another-role");

    // The class waits for its claim, and takes everything of its own with it.
    world.kubectl(&["delete", "nodepool", "c", "--wait=false"]);
    world.kubectl(&["delete", "ec2nodeclass", "c", "--wait=false"]);
    within(MINUTES, "the class is gone", || async {
        let api = Api::<EC2NodeClass>::all(world.kube.clone());
        api.get_opt("c").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(world.claims().await.is_empty());
    assert_eq!(profiles().await, ["of-another-cluster", "of-another-region", "of-the-user"]);
    let mut left = world.launch_templates().await;
    left.sort();
    assert_eq!(left, ["karpenter.k8s.aws/2", "mine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_in_use_waits_for_its_claims() {
    let world = World::up().await;
    let _controller = Controller::start(&world);
    apply(
        &world,
        &[class("c", json!({})), pool("c", "c", "linux", "amd64"), pod("a", "c", "linux")],
    )
    .await;
    let claim = one_initialized(&world).await.metadata.name.unwrap();
    world.kubectl(&["delete", "ec2nodeclass", "c", "--wait=false"]);
    let text = until("an event", || async {
        world.events("WaitingOnNodeClaimTermination").await.into_iter().next()
    })
    .await;
    assert_eq!(text, format!("Waiting on NodeClaim termination for {claim}"));
    assert!(class_of(&world, "c").await.metadata.deletion_timestamp.is_some());
    // Its NodePool is told that it has no class to launch from any more.
    until("a warning on the pool", || async {
        let api = Api::<Event>::all(world.kube.clone());
        let events = api.list(&ListParams::default()).await.unwrap();
        events.into_iter().find(|e| {
            e.message.as_deref() == Some("Failed resolving NodeClass")
                && e.type_.as_deref() == Some("Warning")
                && e.involved_object.kind.as_deref() == Some("NodePool")
                && e.involved_object.name.as_deref() == Some("c")
        })
    })
    .await;
}
