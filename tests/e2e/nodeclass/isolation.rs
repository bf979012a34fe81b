//! What fails for one class is that class's matter: EC2 is not flooded, and what the policy denies
//! stands on the condition. That others are not held up is a test of `timing.rs`.

use std::time::Duration;

use serde_json::json;

use super::{ROLE, apply, class, class_of, joins, pod, pool, ready, says};
use crate::chain::condition;
use crate::support::{Controller, World, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_minute_of_throttling_brings_few_calls_and_is_logged() {
    let world = World::up().await;
    for action in ["RunInstances", "CreateFleet", "CreateLaunchTemplate", "DescribeImages"] {
        world
            .fault(json!({"service": "ec2", "action": action, "status": 503,
                "code": "RequestLimitExceeded", "message": "Request limit exceeded."}))
            .await;
    }
    let controller = Controller::start(&world);
    apply(
        &world,
        &[class("c", json!({})), pool("c", "c", "linux", "amd64"), pod("a", "c", "linux")],
    )
    .await;
    until("a throttled call", || async {
        let calls = world.calls("DescribeImages").await;
        calls.iter().any(|c| c["status"] == 503).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    for action in ["RunInstances", "CreateFleet", "CreateLaunchTemplate", "DescribeImages"] {
        let calls = world.calls(action).await.len();
        println!("{action}: {calls} calls in a minute");
        // Ten tries of three attempts each, as delays double from 100 ms to a minute.
        assert!(calls <= 40, "{action}: {calls} calls in a minute");
    }
    controller.says(&["RequestLimitExceeded"]).await;
    world.heal().await;
    joins(&world, "c").await;
    let before =
        world.calls("RunInstances").await.len() + world.calls("DescribeImages").await.len();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let after = world.calls("RunInstances").await.len() + world.calls("DescribeImages").await.len();
    assert!(after - before <= 3, "{} calls in 20 seconds after healing", after - before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_denies_stands_on_the_condition_that_needs_it() {
    let world = World::up().await;
    let denied = [
        ("ec2", "DescribeImages", "UnauthorizedOperation", "AMIsReady", "ec2:DescribeImages"),
        ("ec2", "DescribeSubnets", "UnauthorizedOperation", "SubnetsReady", "ec2:DescribeSubnets"),
        (
            "ec2",
            "DescribeSecurityGroups",
            "UnauthorizedOperation",
            "SecurityGroupsReady",
            "ec2:DescribeSecurityGroups",
        ),
        (
            "iam",
            "GetInstanceProfile",
            "AccessDenied",
            "InstanceProfileReady",
            "iam:GetInstanceProfile",
        ),
    ];
    for (service, action, code, ..) in denied {
        world
            .fault(json!({"service": service, "action": action, "code": code, "status": 403,
                "message": "You are not authorized to perform this operation."}))
            .await;
    }
    let _controller = Controller::start(&world);
    apply(&world, &[class("c", json!({}))]).await;
    for (.., kind, permission) in denied {
        let words = format!("Controller isn't authorized to call {permission}: ");
        says(&world, "c", kind, "False", "Unauthorized", &words).await;
    }
    world.heal().await;
    ready(&world, "c").await;
    // What was found is still right: a class that is settled stays so.
    for (service, action, code, ..) in denied {
        world
            .fault(json!({"service": service, "action": action, "code": code, "status": 403,
                "message": "You are not authorized to perform this operation."}))
            .await;
    }
    tokio::time::sleep(Duration::from_secs(70)).await;
    let list = class_of(&world, "c").await.status.unwrap().conditions;
    assert!(list.iter().all(|c| c.status == "True"), "{list:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_goes_from_a_profile_to_a_role_gets_a_profile_of_its_own() {
    let world = World::up().await;
    let iam = aws_sdk_iam::Client::new(&world.aws);
    iam.create_instance_profile().instance_profile_name("pond").send().await.unwrap();
    let add = iam.add_role_to_instance_profile().instance_profile_name("pond");
    add.role_name(ROLE).send().await.unwrap();
    let _controller = Controller::start(&world);
    let profile_of = || async { class_of(&world, "c").await.status?.instance_profile };
    world.apply(&class("c", json!({"role": null, "instanceProfile": "pond"})).to_string()).await;
    ready(&world, "c").await;
    assert_eq!(profile_of().await.as_deref(), Some("pond"));
    world.apply(&class("c", json!({})).to_string()).await;
    let made = until("a profile of the class's own", || async {
        profile_of().await.filter(|name| name != "pond")
    })
    .await;
    let found = iam.get_instance_profile().instance_profile_name(&made).send().await.unwrap();
    assert_eq!(found.instance_profile().unwrap().roles()[0].role_name(), ROLE);
    // Nodes start with it, and the user's own is left alone.
    apply(&world, &[pool("c", "c", "linux", "amd64"), pod("a", "c", "linux")]).await;
    assert!(!condition(&joins(&world, "c").await, "Drifted"));
    iam.get_instance_profile().instance_profile_name("pond").send().await.unwrap();
}
