//! The founding document's IAM policy, enforced to the letter: what it does not allow is refused.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::chain::one_initialized;
use crate::instances::{apply, metric, node_pool, spread};
use crate::support::world::root;
use crate::support::{Controller, World, node_class, until};

/// The controller's access key; only its calls are held to the policy.
const KEY: &str = "AKIAFOUNDINGPOLICY00";

/// The policy with its variables filled in.
fn founding_policy(world: &World) -> Value {
    let text = std::fs::read_to_string(root().join("deploy/iam/controller-policy-0.37.json"));
    let filled = text
        .unwrap()
        .replace("${AWS_PARTITION}", "aws")
        .replace("${AWS_ACCOUNT_ID}", "123456789012")
        .replace("${AWS_REGION}", "us-east-1")
        .replace("${CLUSTER_NAME}", &world.env["CLUSTER_NAME"]);
    assert!(!filled.contains("${"), "{filled}");
    serde_json::from_str(&filled).unwrap()
}

/// Features whose calls the policy lacks: name, permission, call.
const MISSING: &[(&str, &str, &str)] = &[
    ("capacity-reservations", "ec2:DescribeCapacityReservations", "DescribeCapacityReservations"),
    ("placement-groups", "ec2:DescribePlacementGroups", "DescribePlacementGroups"),
    ("instance-status", "ec2:DescribeInstanceStatus", "DescribeInstanceStatus"),
    ("instance-profile-collection", "iam:ListInstanceProfiles", "ListInstanceProfiles"),
    ("zonal-shift", "arc-zonal-shift:GetManagedResource", "GetManagedResource"),
    ("interruptions", "sqs:GetQueueUrl, sqs:ReceiveMessage", "GetQueueUrl"),
];

/// Calls that were refused for want of a permission, by action.
async fn refused(world: &World) -> Vec<String> {
    let calls = world.admin("calls", None).await;
    let denied = ["UnauthorizedOperation", "AccessDenied", "AccessDeniedException"];
    calls
        .as_array()
        .unwrap()
        .iter()
        .filter(|c| c["error"].as_str().is_some_and(|e| denied.contains(&e)))
        .map(|c| c["action"].as_str().unwrap().to_owned())
        .collect()
}

/// The founding manifests get their node and lose it; beside them, a class that asks for reservations
/// launches without, and one that asks for a placement group says why it cannot.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_founding_policy_nodes_come_and_go() {
    let world = World::up().await;
    let policy = json!({"document": founding_policy(&world), "principal": KEY});
    let set = world.admin("policy", Some(policy)).await;
    assert!(set["error"].is_null(), "{set}");
    let queue = world.env["WORLD_QUEUE"].clone();
    let queue = queue.rsplit('/').next().unwrap();
    let controller = Controller::with(
        &world,
        &[
            ("AWS_ACCESS_KEY_ID", KEY),
            ("ENABLE_ZONAL_SHIFT", "true"),
            ("INTERRUPTION_QUEUE", queue),
        ],
    );
    world.apply_file("examples/weasel-eks/manifests.yaml").await;
    world.deploy("inflate", 3, "250m", "200Mi").await;
    one_initialized(&world).await;
    until("three running pods", || async { (world.running().await == 3).then_some(()) }).await;
    world.scale("inflate", 0);
    until("no instance", || async { world.instances().await.is_empty().then_some(()) }).await;
    until("no launch template", || async {
        world.launch_templates().await.is_empty().then_some(())
    })
    .await;

    let reserving = node_class(
        "reserving",
        json!({"capacityReservationSelectorTerms": [{"tags": {"team": "web"}}]}),
    );
    let mut pool = node_pool(&["t3.medium"], &["reserved", "spot"]);
    pool["metadata"]["name"] = "reserving".into();
    pool["spec"]["weight"] = 50.into();
    pool["spec"]["template"]["spec"]["nodeClassRef"]["name"] = "reserving".into();
    let grouped = node_class("grouped", json!({"placementGroupSelector": {"name": "close"}}));
    apply(&world, &[reserving, pool, grouped, spread("web", 1)]).await;
    until("a running pod", || async { (world.running().await == 1).then_some(()) }).await;
    let claims = world.claims().await;
    let labels = claims[0].metadata.labels.as_ref().unwrap();
    assert_eq!(labels["karpenter.sh/nodepool"], "reserving");
    assert_eq!(labels["karpenter.sh/capacity-type"], "spot");
    let condition = until("the class's condition", || async {
        let path = "jsonpath={.status.conditions[?(@.type==\"PlacementGroupReady\")]}";
        let text = world.kubectl(&["get", "ec2nodeclass", "grouped", "-o", path]);
        let condition: Value = serde_json::from_str(&text).ok()?;
        (condition["status"] == "False").then_some(condition)
    })
    .await;
    let message = condition["message"].as_str().unwrap();
    assert!(message.contains("ec2:DescribePlacementGroups"), "{message}");

    // The profile goes with the class, although profiles may not be listed.
    world.kubectl(&["delete", "ec2nodeclass", "default", "--timeout=60s"]);
    let iam = aws_sdk_iam::Client::new(&world.aws);
    let left = iam.list_instance_profiles().send().await.unwrap();
    let made = left.instance_profiles().iter().filter(|p| p.path().starts_with("/karpenter/"));
    assert_eq!(made.count(), 2, "those of the other two classes");
    each_missing_call_warned_once(&world, &controller).await;
}

async fn each_missing_call_warned_once(world: &World, controller: &Controller) {
    for (feature, permission, _) in MISSING {
        let labels = [format!("feature=\"{feature}\""), format!("permission=\"{permission}\"")];
        let labels = [labels[0].as_str(), labels[1].as_str()];
        until(&format!("{feature} off"), || async {
            let name = "karpenter_cloudprovider_feature_disabled";
            (metric(controller, name, &labels).await == Some(1.0)).then_some(())
        })
        .await;
        let warnings: Vec<Value> =
            controller.log().into_iter().filter(|l| l["feature"] == *feature).collect();
        assert_eq!(warnings.len(), 1, "{feature}: {warnings:?}");
        assert_eq!(warnings[0]["level"], "WARN");
        let text = warnings[0]["message"].as_str().unwrap();
        assert!(text.starts_with(&format!("not authorized to perform {permission}, ")), "{text}");
    }
    let refused = refused(world).await;
    let once: BTreeSet<&str> = refused.iter().map(String::as_str).collect();
    assert_eq!(once, MISSING.iter().map(|(_, _, call)| *call).collect(), "nothing else is needed");
    for (_, _, call) in MISSING {
        // EC2's status is asked for in three calls at a time.
        let limit = if *call == "DescribeInstanceStatus" { 3 } else { 1 };
        assert!(refused.iter().filter(|c| c == call).count() <= limit, "{call}: {refused:?}");
    }
    let errors: Vec<Value> = controller
        .log()
        .into_iter()
        .filter(|l| l["level"] == "ERROR")
        .filter(|l| l["error"].as_str().is_some_and(|e| e.contains("not authorized")))
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
}
