use std::collections::BTreeSet;

use serde_json::json;

use super::super::stub::{self, World};
use super::*;
use crate::cloud::aws::tags::NODECLAIM;

async fn launch(world: &World) -> Result<Instance, Error> {
    let claim = stub::claim(&world.clock, &["on-demand"]);
    let types = [stub::kind("m5.large"), stub::kind("m5.xlarge")];
    world.provider.launch(&stub::class(), &claim, &types).await
}

fn tokens(world: &World) -> Vec<String> {
    world.stub.calls("CreateFleet").iter().map(|c| c["ClientToken"].clone()).collect()
}

/// EC2's description of an instance with a tag.
fn described(id: &str, key: &str, value: &str) -> String {
    format!(
        "<DescribeInstancesResponse><reservationSet><item><instancesSet><item>\
         <instanceId>{id}</instanceId><instanceType>m5.large</instanceType>\
         <instanceState><name>running</name></instanceState>\
         <placement><availabilityZone>a</availabilityZone></placement>\
         <tagSet><item><key>{key}</key><value>{value}</value></item></tagSet>\
         </item></instancesSet></item></reservationSet></DescribeInstancesResponse>"
    )
}

/// Requests that EC2 refuses as a whole: code, message, status, and the reason that is reported.
const REFUSALS: &[(&str, &str, u16, &str)] = &[
    ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", "no", 403, "SpotSLRCreationFailed"),
    (
        "UnauthorizedOperation",
        "with an explicit deny in a permissions boundary",
        403,
        "Unauthorized",
    ),
    (
        "UnauthorizedOperation",
        "with an explicit deny in a service control policy",
        403,
        "Unauthorized",
    ),
    ("UnauthorizedOperation", "Not authorized for images: [ami-1]", 403, "AMIAuthorizationFailure"),
    ("UnauthorizedOperation", "no policy allows it", 403, "Unauthorized"),
    ("AccessDenied", "no", 403, "Unauthorized"),
    ("AuthFailure", "no", 403, "Unauthorized"),
    (
        "InvalidParameter",
        "sg-1 and subnet-a belong to different networks",
        400,
        "SecurityGroupSubnetVPCMismatch",
    ),
    (
        "InvalidParameterValue",
        "Value (p) for parameter iamInstanceProfile.name is invalid",
        400,
        "InstanceProfileNameInvalid",
    ),
    ("InvalidLaunchTemplateId.NotFound", "lt-1", 400, "LaunchTemplateNotFound"),
    (
        "InvalidUserData.Malformed",
        "User data is limited to 16384 bytes",
        400,
        "UserDataSizeLimitExceeded",
    ),
    ("InvalidAMIID.Malformed", "ami", 400, "InvalidAMIID"),
    ("InvalidAMIID.NotFound", "ami-1", 400, "AMINotFound"),
    ("RequestLimitExceeded", "slow down", 503, "RequestLimitExceeded"),
    ("Throttling", "Rate exceeded", 503, "LaunchFailed"),
    ("InternalError", "sorry", 500, "InternalError"),
    ("ServiceUnavailable", "sorry", 503, "LaunchFailed"),
    (
        "InvalidParameterCombination",
        "The type is not eligible for Free Tier",
        400,
        "FreeTierIneligible",
    ),
    ("MaxFleetCountExceeded", "too many", 400, "FleetQuotaExceeded"),
    ("PendingVerification", "wait", 400, "AccountPendingVerification"),
    ("MaxSpotInstanceCountExceeded", "too many", 400, "SpotQuotaExceeded"),
    ("VcpuLimitExceeded", "too many", 400, "VCPULimitExceeded"),
    ("InsufficientInstanceCapacity", "none", 400, "LaunchFailed"),
    ("InsufficientFreeAddressesInSubnet", "none", 400, "InsufficientFreeAddressesInSubnet"),
    ("ReservationCapacityExceeded", "full", 400, "LaunchFailed"),
    ("SomethingNew", "x", 400, "LaunchFailed"),
];

#[tokio::test]
async fn each_refusal_of_a_request_is_reported_and_marks_nothing() {
    for (code, message, status, want) in REFUSALS {
        let world = World::new().await;
        world.stub.fail("CreateFleet", *status, code, message);
        let error = launch(&world).await.unwrap_err();
        let call = error.failed_call().unwrap();
        assert_eq!((call.code.as_str(), call.status), (*code, *status));
        let Error::Create { reason, condition, .. } = error else { panic!("{code}: {error:?}") };
        assert_eq!(reason, *want, "{code}: {message}");
        let detail = errors::launch_failure(&format!("{code}: {message}")).1;
        assert_eq!(condition, format!("Error creating fleet request: {detail}"));
        assert_eq!(world.unavailable.version(), 0, "{code}");
        // The next try gets its instance. Only where EC2 may have done what it was asked is it the
        // same request once more, after a look for what came of the first.
        world.stub.answer("CreateFleet", &stub::fleet(&["i-1"]));
        assert_eq!(launch(&world).await.unwrap().id, "i-1");
        let tokens = tokens(&world);
        assert_eq!(tokens.len(), 2, "{code}");
        let unsure = matches!(*code, "InternalError" | "ServiceUnavailable");
        assert_eq!(tokens[0] == tokens[1], unsure, "{code}");
        assert_eq!(world.stub.calls("DescribeInstances").len(), usize::from(unsure), "{code}");
    }
}

#[tokio::test]
async fn what_is_launched_is_known() {
    let world = World::new().await;
    world.stub.answer("CreateFleet", &stub::fleet(&["i-1"]));
    let launched = launch(&world).await.unwrap();
    assert_eq!(world.provider.get("i-1").await.unwrap(), launched);
    assert!(world.stub.calls("DescribeInstances").is_empty());
}

#[tokio::test]
async fn a_launch_template_that_is_gone_is_created_again_once() {
    let code = "InvalidLaunchTemplateName.NotFoundException";
    let world = World::new().await;
    world.stub.fail("CreateFleet", 400, code, "gone");
    world.stub.answer("CreateFleet", &stub::fleet(&["i-1"]));
    assert_eq!(launch(&world).await.unwrap().id, "i-1");
    assert_eq!(world.stub.calls("CreateLaunchTemplate").len(), 2);
    assert_eq!(tokens(&world).into_iter().collect::<BTreeSet<_>>().len(), 2);
    let world = World::new().await;
    world.stub.fail("CreateFleet", 400, code, "gone");
    world.stub.fail("CreateFleet", 400, code, "gone again");
    let error = launch(&world).await.unwrap_err();
    assert!(matches!(error, Error::Create { reason, .. } if reason == "LaunchTemplateNotFound"));
    assert_eq!(tokens(&world).len(), 2);
    assert_eq!(world.unavailable.version(), 0);
}

#[tokio::test]
async fn a_used_token_leads_to_the_instance_that_it_launched() {
    let world = World::new().await;
    world.stub.fail("CreateFleet", 400, "IdempotentParameterMismatch", "used");
    world.stub.answer("DescribeInstances", &described("i-earlier", NODECLAIM, "claim-1"));
    let uid_and_name = json!({"metadata": {"name": "claim-1", "uid": "uid-1"},
        "spec": {"nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "n"}, "requirements": []}});
    world.stub.claims.lock().push(uid_and_name);
    assert_eq!(launch(&world).await.unwrap().id, "i-earlier");
    assert_eq!(tokens(&world).len(), 1);
    // Where that launch left nothing, this is another one.
    let world = World::new().await;
    world.stub.fail("CreateFleet", 400, "IdempotentParameterMismatch", "used");
    world.stub.answer("CreateFleet", &stub::fleet(&["i-new"]));
    assert_eq!(launch(&world).await.unwrap().id, "i-new");
    let tokens = tokens(&world);
    assert_ne!(tokens[0], tokens[1]);
    // Twice in a row is a failure like any other.
    let world = World::new().await;
    world.stub.fail("CreateFleet", 400, "IdempotentParameterMismatch", "used");
    world.stub.fail("CreateFleet", 400, "IdempotentParameterMismatch", "used");
    let error = launch(&world).await.unwrap_err();
    assert!(matches!(error, Error::Create { reason, .. } if reason == "LaunchFailed"));
}

#[tokio::test]
async fn launch_templates_fail_a_launch_with_their_reason() {
    for (action, code, status, want) in [
        ("DescribeLaunchTemplates", "UnauthorizedOperation", 403, "Unauthorized"),
        ("CreateLaunchTemplate", "UnauthorizedOperation", 403, "Unauthorized"),
        ("CreateLaunchTemplate", "RequestLimitExceeded", 503, "RequestLimitExceeded"),
        ("CreateLaunchTemplate", "InvalidAMIID.Malformed", 400, "InvalidAMIID"),
    ] {
        let world = World::new().await;
        world.stub.fail(action, status, code, "x");
        let error = launch(&world).await.unwrap_err();
        let Error::Create { reason, condition, .. } = error else { panic!("{error:?}") };
        assert_eq!(reason, want, "{action}: {code}");
        assert!(condition.starts_with("Error getting launch template configs: "), "{condition}");
        assert!(tokens(&world).is_empty());
    }
    // What the status lacks.
    let world = World::new().await;
    let claim = stub::claim(&world.clock, &["on-demand"]);
    let types = [stub::kind("m5.large")];
    let mut class = stub::class();
    let status = class.status.as_mut().unwrap();
    status.amis.clear();
    let error = world.provider.launch(&class, &claim, &types).await.unwrap_err();
    let Error::Create { reason, condition, message } = error else { panic!("{error:?}") };
    assert_eq!(reason, "LaunchFailed");
    assert_eq!(condition, "Error getting launch template configs: Instance launch failed");
    assert_eq!(message.text, "getting launch template configs, no amis exist given constraints");
    class.status.as_mut().unwrap().subnets.clear();
    let error = world.provider.launch(&class, &claim, &types).await.unwrap_err();
    assert!(matches!(error, Error::Create { reason, condition, .. }
        if reason == "SubnetResolutionFailed" && condition == "Error getting subnets"));
}

#[tokio::test]
async fn a_call_that_takes_long_for_one_class_delays_no_other() {
    for action in ["DescribeLaunchTemplates", "CreateLaunchTemplate"] {
        let world = World::new().await;
        world.stub.slow(action, Duration::from_secs(30));
        world.stub.answer("CreateFleet", &stub::fleet(&["i-1"]));
        let claim = stub::claim(&world.clock, &["on-demand"]);
        let types = [stub::kind("m5.large")];
        let class = stub::class();
        let slow = world.provider.launch(&class, &claim, &types);
        let mut other = stub::class();
        other.spec.user_data = Some("#!/bin/bash".to_owned());
        let quick = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let launch = world.provider.launch(&other, &claim, &types);
            tokio::time::timeout(Duration::from_secs(3), launch).await
        };
        tokio::select! {
            launched = slow => panic!("{action}: the slow call came first: {launched:?}"),
            launched = quick => assert_eq!(launched.unwrap().unwrap().id, "i-1", "{action}"),
        }
    }
}

#[tokio::test]
async fn a_template_that_is_being_removed_is_made_again_for_who_needs_it() {
    let world = World::new().await;
    world.stub.answer("CreateFleet", &stub::fleet(&["i-1"]));
    launch(&world).await.unwrap();
    world.clock.advance(Duration::from_secs(61));
    world.stub.slow("DeleteLaunchTemplate", Duration::from_millis(500));
    world.stub.answer("DeleteLaunchTemplate", "<DeleteLaunchTemplateResponse/>");
    world.stub.answer("CreateFleet", &stub::fleet(&["i-2"]));
    let needed = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        launch(&world).await
    };
    let (launched, ()) = tokio::join!(needed, world.provider.templates.delete_expired());
    assert_eq!(launched.unwrap().id, "i-2");
    assert_eq!(world.stub.calls("DeleteLaunchTemplate").len(), 1);
    assert_eq!(world.stub.calls("CreateLaunchTemplate").len(), 2);
    // What a launch has just used is kept.
    world.provider.templates.delete_expired().await;
    assert_eq!(world.stub.calls("DeleteLaunchTemplate").len(), 1);
}

#[tokio::test]
async fn for_whom_an_instance_is_stands_on_the_instance_alone() {
    let world = World::new().await;
    world.stub.answer("CreateFleet", &stub::fleet(&["i-1"]));
    launch(&world).await.unwrap();
    let call = &world.stub.calls("CreateFleet")[0];
    let tagged = |kind: &str| {
        let at = call.iter().find(|(k, v)| k.ends_with("ResourceType") && *v == kind).unwrap().0;
        let prefix = at.trim_end_matches("ResourceType");
        let keys = call.iter().filter(|(k, _)| k.starts_with(prefix) && k.ends_with("Key"));
        keys.map(|(_, v)| v.clone()).collect::<BTreeSet<String>>()
    };
    let of_volumes = tagged("volume");
    assert_eq!(of_volumes, tagged("fleet"));
    assert!(!of_volumes.contains(NODECLAIM), "{of_volumes:?}");
    assert!(of_volumes.contains(labels::NODEPOOL), "{of_volumes:?}");
    let mut of_instances = tagged("instance");
    assert!(of_instances.remove(NODECLAIM));
    assert_eq!(of_instances, of_volumes);
}

#[tokio::test]
async fn a_reboot_is_made_once_for_each_request() {
    let world = World::new().await;
    world.stub.fail("RebootInstances", 503, "RequestLimitExceeded", "slow down");
    let error = world.provider.reboot("i-1", "first").await.unwrap_err();
    assert_eq!(error.code, "RequestLimitExceeded");
    for _ in 0..3 {
        world.stub.answer("RebootInstances", "<RebootInstancesResponse/>");
    }
    for request in ["first", "first", "second"] {
        world.provider.reboot("i-1", request).await.unwrap();
    }
    let calls = world.stub.calls("RebootInstances");
    assert_eq!(calls.len(), 3, "one that failed, one for each request");
    assert_eq!(calls[0]["InstanceId.1"], "i-1");
}

#[tokio::test]
async fn nothing_is_rebooted_in_a_zone_that_a_shift_moved_away_from() {
    let world = World::new().await;
    let zone = "<availabilityZone>a</availabilityZone>";
    let with_id = format!("{zone}<availabilityZoneId>use1-az1</availabilityZoneId>");
    let answer = described("i-1", NODECLAIM, "claim-1").replace(zone, &with_id);
    world.stub.answer("DescribeInstances", &answer);
    world.provider.may_reboot("i-1").await.unwrap();
    let end = world.clock.now() + Duration::from_secs(3600);
    world.shifts.note(false, BTreeMap::from([("use1-az1".to_owned(), end)]));
    let error = world.provider.may_reboot("i-1").await.unwrap_err();
    let text = "instance i-1 is in zonally shifted availability zone a (use1-az1), skipping reboot";
    assert_eq!(error.to_string(), text);
    world.clock.advance(Duration::from_secs(3600));
    world.provider.may_reboot("i-1").await.unwrap();
    world.stub.answer("DescribeInstances", "<DescribeInstancesResponse/>");
    let gone = world.provider.may_reboot("i-2").await.unwrap_err();
    assert!(matches!(gone, Error::NodeClaimNotFound(_)), "{gone}");
}

#[tokio::test]
async fn calls_of_ec2_move_their_metrics() {
    let world = World::new().await;
    world.stub.answer("CreateFleet", &stub::fleet(&["i-1"]));
    launch(&world).await.unwrap();
    world.stub.answer("DescribeInstances", &described("i-1", NODECLAIM, "claim-1"));
    world.stub.fail("TerminateInstances", 400, "UnauthorizedOperation", "no");
    world.provider.delete("i-1").await.unwrap_err();
    let text = crate::operator::metrics::render();
    for name in [
        "aws_sdk_go_request_total",
        "aws_sdk_go_request_duration_seconds_count",
        "aws_sdk_go_request_retry_count_count",
        "aws_sdk_go_request_attempt_total",
        "aws_sdk_go_request_attempt_duration_seconds_count",
    ] {
        let of_name = |l: &&str| l.starts_with(&format!("{name}{{"));
        let fleet = |l: &str| l.contains("action=\"CreateFleet\"") && l.contains("code=\"200\"");
        assert!(text.lines().filter(of_name).any(fleet), "{name}");
    }
    for series in [
        "karpenter_cloudprovider_instance_termination_failures_total{zone=\"a\"",
        "karpenter_ec2nodeclasses_userdata_bytes{nodeclass=\"default\"}",
    ] {
        assert!(text.contains(series), "{series}");
    }
}
