//! Classes that cannot be used say why, in what field; others launch meanwhile, and mending one is
//! enough for it to launch, too.

use std::time::Duration;

use serde_json::{Value, json};

use super::{MINUTES, ROLE, apply, class, class_of, find, joins, pod, pool, ready, replace, says};
use crate::support::{Controller, World, stays, within};

#[tokio::test(flavor = "multi_thread")]
async fn broken_classes_are_told_while_others_launch() {
    let world = World::up().await;
    let controller = Controller::start(&world);
    let broken = [
        (
            "no-groups",
            json!({"securityGroupSelectorTerms": [{"tags": {"a": "nobody"}}]}),
            "SecurityGroupsReady",
            "SecurityGroupsNotFound",
            "SecurityGroupSelector did not match any SecurityGroups",
        ),
        (
            "no-subnets",
            json!({"subnetSelectorTerms": [{"id": "subnet-0123456789abcdef0"}]}),
            "SubnetsReady",
            "SubnetsNotFound",
            "SubnetSelector did not match any Subnets",
        ),
        (
            "old-alias",
            json!({"amiSelectorTerms": [{"alias": "al2@latest"}]}),
            "AMIsReady",
            "UnsupportedAlias",
            "AL2 aliases are no longer supported on EKS 1.33+",
        ),
        (
            "no-role",
            json!({"role": "nobody"}),
            "InstanceProfileReady",
            "RoleNotFound",
            "spec.role: IAM has no role \"nobody\"",
        ),
        (
            "bad-toml",
            json!({"amiSelectorTerms": [{"alias": "bottlerocket@latest"}], "userData": "[settings"}),
            "ValidationSucceeded",
            "UserDataInvalid",
            "spec.userData",
        ),
        (
            "bad-mime",
            json!({"userData": "MIME-Version: 1.0\nContent-Type: text/plain\n\nx"}),
            "ValidationSucceeded",
            "UserDataInvalid",
            "spec.userData",
        ),
        (
            "bad-yaml",
            json!({"userData": "apiVersion: node.eks.aws/v1alpha1\nkind: [NodeConfig\n"}),
            "ValidationSucceeded",
            "UserDataInvalid",
            "spec.userData",
        ),
        (
            "bad-yaml-fragment",
            json!({"userData": "spec:\n  kubelet: [\n"}),
            "ValidationSucceeded",
            "UserDataInvalid",
            "spec.userData: parsing custom user data input, expected a NodeConfig in YAML",
        ),
        (
            "bad-powershell",
            json!({"amiSelectorTerms": [{"alias": "windows2022@latest"}],
                "userData": "<powershell>\nWrite-Host hello\n</powershell>"}),
            "ValidationSucceeded",
            "UserDataInvalid",
            "spec.userData: expected PowerShell without its tags",
        ),
        (
            "bad-kubelet",
            json!({"kubelet": {"maxPods": -5, "evictionHard": {"memory": "5%"}}}),
            "ValidationSucceeded",
            "InvalidKubeletConfiguration",
            "spec.kubelet.maxPods",
        ),
        (
            "wrong-arch",
            json!({"amiFamily": "AL2", "amiSelectorTerms": [{"id": "ami-0a7d2c1f5e8b94d06"}]}),
            "ValidationSucceeded",
            "AMINotCompatible",
            "spec.amiSelectorTerms",
        ),
        (
            "no-group",
            json!({"placementGroupSelector": {"name": "nobody"}}),
            "PlacementGroupReady",
            "",
            "lacement group",
        ),
    ];
    for (name, over, ..) in broken.clone() {
        apply(
            &world,
            &[class(name, over), pool(name, name, "linux", "amd64"), pod(name, name, "linux")],
        )
        .await;
    }
    apply(
        &world,
        &[
            class("good", json!({})),
            pool("good", "good", "linux", "amd64"),
            pod("good", "good", "linux"),
        ],
    )
    .await;
    joins(&world, "good").await;
    for (name, _, kind, reason, words) in broken.clone() {
        within(MINUTES, &format!("{name}: {kind} is False for {reason} ({words})"), || async {
            let list = class_of(&world, name).await.status?.conditions;
            let found = find(&list, kind)?;
            let fits = reason.is_empty() || found.reason == reason;
            (found.status == "False" && fits && found.message.contains(words)).then_some(())
        })
        .await;
        let list = class_of(&world, name).await.status.unwrap().conditions;
        let root = find(&list, "Ready").unwrap();
        assert_ne!(root.status, "True", "{name}");
        assert!(root.message.contains(kind), "{name}: {root:?}");
    }
    // Launches from broken classes wait; none is tried.
    assert_eq!(world.claims().await.len(), 1);
    assert_eq!(world.instances().await.len(), 1);

    // Mended, they launch without a restart.
    for (name, ..) in broken.clone() {
        replace(&world, &class(name, json!({}))).await;
    }
    for (name, ..) in broken {
        joins(&world, name).await;
    }
    drop(controller);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_call_is_told_and_mended() {
    let world = World::up().await;
    world
        .fault(json!({"service": "ec2", "action": "RunInstances", "contains": "DryRun=true",
            "code": "UnauthorizedOperation", "message": "You are not authorized", "status": 403}))
        .await;
    let controller = Controller::start(&world);
    apply(
        &world,
        &[class("c", json!({})), pool("c", "c", "linux", "amd64"), pod("a", "c", "linux")],
    )
    .await;
    says(
        &world,
        "c",
        "ValidationSucceeded",
        "False",
        "RunInstancesAuthCheckFailed",
        "Controller isn't authorized to call ec2:RunInstances: User is not authorized",
    )
    .await;
    controller.says(&["unauthorized to call ec2:RunInstances"]).await;
    assert!(world.claims().await.is_empty());
    world.heal().await;
    // The verdict is kept until something changes.
    world.apply(&class("c", json!({"tags": {"team": "x"}})).to_string()).await;
    joins(&world, "c").await;

    world
        .fault(json!({"service": "ec2", "action": "CreateLaunchTemplate", "code": "InvalidUserData.Malformed",
            "message": "User data is limited to 16384 bytes", "status": 400}))
        .await;
    let long = "# padding\n".repeat(1500);
    apply(&world, &[class("large", json!({"userData": long}))]).await;
    says(
        &world,
        "large",
        "ValidationSucceeded",
        "False",
        "UserDataSizeLimitExceeded",
        "ec2:CreateLaunchTemplate rejected the rendered user data as too large",
    )
    .await;
    controller.says(&["rendered user data is approaching the EC2 user data size limit"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_subnet_is_noticed_and_done_without() {
    let world = World::up().await;
    let _controller = Controller::start(&world);
    let subnet = world
        .ec2
        .create_subnet()
        .vpc_id(&world.env["WORLD_VPC"])
        .cidr_block("10.10.0.0/24")
        .availability_zone("us-east-1a")
        .send()
        .await
        .unwrap();
    let id = subnet.subnet().unwrap().subnet_id().unwrap().to_owned();
    apply(
        &world,
        &[
            class("c", json!({"subnetSelectorTerms": [{"id": id}]})),
            pool("c", "c", "linux", "amd64"),
        ],
    )
    .await;
    ready(&world, "c").await;
    world.ec2.delete_subnet().subnet_id(&id).send().await.unwrap();
    says(&world, "c", "SubnetsReady", "False", "SubnetsNotFound", "SubnetSelector").await;
    apply(&world, &[pod("a", "c", "linux")]).await;
    stays(Duration::from_secs(3), "claims", 0, || async { world.claims().await.len() }).await;
    let other = world.env["WORLD_SUBNETS"].split(',').next().unwrap();
    replace(&world, &class("c", json!({"subnetSelectorTerms": [{"id": other}]}))).await;
    joins(&world, "c").await;
}

/// What the schema can tell is refused at once, and the message names the field.
#[tokio::test(flavor = "multi_thread")]
async fn conflicting_terms_are_refused_by_the_api_server() {
    let world = World::up().await;
    let refused = |over: Value, remove: &[&str]| {
        let mut class = class("c", over);
        for field in remove {
            class["spec"].as_object_mut().unwrap().remove(*field);
        }
        world.kubectl_with(&["apply", "-f", "-"], &class.to_string()).unwrap_err()
    };
    for (over, remove, parts) in [
        (
            json!({"amiSelectorTerms": [{"alias": "al2023@latest"}, {"id": "ami-1"}]}),
            &[][..],
            &["spec.amiSelectorTerms", "alias"][..],
        ),
        (
            json!({"amiSelectorTerms": [{"id": "ami-1", "name": "x"}]}),
            &[],
            &["spec.amiSelectorTerms", "'id' is mutually exclusive"],
        ),
        (
            json!({"subnetSelectorTerms": [{"id": "subnet-1", "tags": {"a": "b"}}]}),
            &[],
            &["spec.subnetSelectorTerms", "'id' is mutually exclusive"],
        ),
        (
            json!({"securityGroupSelectorTerms": [{"id": "sg-1", "name": "b"}]}),
            &[],
            &["spec.securityGroupSelectorTerms", "'id' is mutually exclusive"],
        ),
        (json!({"amiFamily": "AL2"}), &[], &["spec", "amiFamily"]),
        (json!({"amiSelectorTerms": [{"id": "ami-1"}]}), &[], &["spec", "amiFamily"]),
        (json!({"instanceProfile": "p"}), &[], &["spec", "role", "instanceProfile"]),
        (json!({}), &["role"], &["spec", "role", "instanceProfile"]),
        (json!({"tags": {"karpenter.sh/nodepool": "x"}}), &[], &["spec.tags", "restricted"]),
    ] {
        let text = refused(over.clone(), remove);
        for part in parts {
            assert!(text.contains(part), "{over}: expected {part:?} in {text}");
        }
    }
}

/// What IAM lacks may be made later; nothing but time has to pass then.
#[tokio::test(flavor = "multi_thread")]
async fn roles_and_profiles_that_are_made_later_are_found() {
    let world = World::up().await;
    // What EC2 says as long as it knows no such profile.
    world
        .fault(json!({"service": "ec2", "action": "RunInstances", "contains": "Value=profile",
            "code": "InvalidParameterValue", "status": 400,
            "message": "Value (team-nodes) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name"}))
        .await;
    let _controller = Controller::start(&world);
    let profile = json!({"role": null, "instanceProfile": "team-nodes"});
    let role = json!({"role": "teams/team-role"});
    for (name, over) in [("profile", profile), ("role", role)] {
        apply(&world, &[class(name, over), pool(name, name, "linux", "amd64")]).await;
        apply(&world, &[pod(name, name, "linux")]).await;
    }
    let missing = "Instance profile \"team-nodes\" not found";
    says(&world, "profile", "ValidationSucceeded", "False", "InstanceProfileNotFound", missing)
        .await;
    let missing = "spec.role: IAM has no role \"teams/team-role\"";
    says(&world, "role", "InstanceProfileReady", "False", "RoleNotFound", missing).await;
    assert!(world.claims().await.is_empty());

    let iam = aws_sdk_iam::Client::new(&world.aws);
    let trust = json!({"Version": "2012-10-17", "Statement": []}).to_string();
    let made = iam.create_role().role_name("team-role").path("/teams/");
    made.assume_role_policy_document(trust).send().await.unwrap();
    iam.create_instance_profile().instance_profile_name("team-nodes").send().await.unwrap();
    let with_role = iam.add_role_to_instance_profile().instance_profile_name("team-nodes");
    with_role.role_name(ROLE).send().await.unwrap();
    world.heal().await;
    for name in ["profile", "role"] {
        joins(&world, name).await;
    }
    // The profile of a role with a path is made once, and the user's own is left alone.
    let status = class_of(&world, "role").await.status.unwrap();
    let made = status.instance_profile.unwrap();
    let found = iam.get_instance_profile().instance_profile_name(&made).send().await.unwrap();
    assert_eq!(found.instance_profile().unwrap().roles()[0].role_name(), "team-role");
    let status = class_of(&world, "profile").await.status.unwrap();
    assert_eq!(status.instance_profile.as_deref(), Some("team-nodes"));
}
