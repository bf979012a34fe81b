//! EC2NodeClasses: every family boots, drift is found and only drift, broken input is told and
//! mended, and what is left over is removed.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use karpenter::api::v1::{EC2NodeClass, NodeClaim};
use kube::Api;
use serde_json::{Value, json};

use crate::chain::{condition, one_initialized};
use crate::support::{Controller, World, stays, until, within};

const ROLE: &str = "KarpenterNodeRole-weasel-eks";
const CLUSTER: &str = "weasel-eks";
/// The image that the founding manifests name.
const AL2: &str = "ami-09c00c2e93ce7bd23";
/// Things that live by the minute need more than the usual patience.
const MINUTES: Duration = Duration::from_secs(600);

fn class(name: &str, over: Value) -> Value {
    let discovery = json!([{"tags": {"karpenter.sh/discovery": CLUSTER}}]);
    let mut class = json!({
        "apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass", "metadata": {"name": name},
        "spec": {
            "amiSelectorTerms": [{"alias": "al2023@v20261101"}],
            "role": ROLE,
            "subnetSelectorTerms": discovery,
            "securityGroupSelectorTerms": discovery,
        },
    });
    class["spec"].as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
    class
}

/// A NodePool of one type whose nodes are never disrupted; `family` is a label of its nodes.
fn pool(name: &str, class: &str, os: &str, arch: &str) -> Value {
    let kind = if arch == "arm64" { "m6g.large" } else { "m5.large" };
    let is = |key: &str, value: &str| json!({"key": key, "operator": "In", "values": [value]});
    json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": name},
        "spec": {
            "disruption": {"consolidateAfter": "Never", "budgets": [{"nodes": "0"}]},
            "template": {
                "metadata": {"labels": {"family": name}},
                "spec": {
                    "requirements": [
                        is("node.kubernetes.io/instance-type", kind),
                        is("kubernetes.io/os", os),
                        is("kubernetes.io/arch", arch),
                        is("karpenter.sh/capacity-type", "on-demand"),
                    ],
                    "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": class},
                },
            },
        },
    })
}

/// A pod that only a node of that pool may run.
fn pod(name: &str, pool: &str, os: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeSelector": {"family": pool, "kubernetes.io/os": os},
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "pause", "image": "pause",
                "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}}}],
        },
    })
}

async fn apply(world: &World, objects: &[Value]) {
    for object in objects {
        world.apply(&object.to_string()).await;
    }
}

async fn class_of(world: &World, name: &str) -> EC2NodeClass {
    Api::<EC2NodeClass>::all(world.kube.clone()).get(name).await.unwrap()
}

fn find<'a>(list: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    list.iter().find(|c| c.type_ == kind)
}

/// Waits until a condition of the class has that status and reason, with these words in its message.
async fn says(world: &World, name: &str, kind: &str, status: &str, reason: &str, words: &str) {
    within(MINUTES, &format!("{name}: {kind} is {status} for {reason} ({words})"), || async {
        let list = class_of(world, name).await.status?.conditions;
        let found = find(&list, kind)?;
        let good =
            found.status == status && found.reason == reason && found.message.contains(words);
        good.then_some(())
    })
    .await;
}

async fn ready(world: &World, name: &str) {
    says(world, name, "Ready", "True", "Ready", "").await;
}

async fn claim_of(world: &World, pool: &str) -> Option<NodeClaim> {
    let claims = world.claims().await;
    claims.into_iter().find(|c| {
        c.metadata.labels.as_ref().and_then(|l| l.get("karpenter.sh/nodepool")).map(String::as_str)
            == Some(pool)
    })
}

/// Waits until the pool has a node in use.
async fn joins(world: &World, pool: &str) -> NodeClaim {
    within(MINUTES, &format!("an initialized node of {pool}"), || async {
        claim_of(world, pool).await.filter(|c| condition(c, "Initialized"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_boots() {
    let world = World::up().await;
    let controller = Controller::start(&world);
    let families = [
        (
            "al2",
            "linux",
            "amd64",
            json!({"amiFamily": "AL2", "amiSelectorTerms": [{"id": AL2}], "userData": "#!/bin/bash\necho hello\n"}),
        ),
        (
            "al2023",
            "linux",
            "amd64",
            json!({"userData": "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n  kubelet:\n    config:\n      maxParallelImagePulls: 5\n"}),
        ),
        (
            "al2023-arm",
            "linux",
            "arm64",
            json!({"amiSelectorTerms": [{"alias": "al2023@latest"}], "instanceStorePolicy": "RAID0"}),
        ),
        (
            "bottlerocket",
            "linux",
            "amd64",
            json!({"amiSelectorTerms": [{"alias": "bottlerocket@latest"}], "userData": "[settings.kernel]\nlockdown = \"integrity\"\n"}),
        ),
        (
            "windows2019",
            "windows",
            "amd64",
            json!({"amiSelectorTerms": [{"alias": "windows2019@latest"}]}),
        ),
        (
            "windows2022",
            "windows",
            "amd64",
            json!({"amiSelectorTerms": [{"alias": "windows2022@latest"}], "userData": "Write-Host hello"}),
        ),
        (
            "windows2025",
            "windows",
            "amd64",
            json!({"amiSelectorTerms": [{"alias": "windows2025@latest"}]}),
        ),
        ("custom", "linux", "amd64", custom(&world)),
    ];
    for (name, os, arch, over) in families.clone() {
        apply(&world, &[class(name, over), pool(name, name, os, arch), pod(name, name, os)]).await;
    }
    for (name, os, arch, _) in families {
        let claim = joins(&world, name).await;
        let node = claim.status.unwrap().node_name.unwrap();
        let nodes = world.nodes().await;
        let node = nodes.iter().find(|n| n.metadata.name.as_deref() == Some(&node)).unwrap();
        let labels = node.metadata.labels.as_ref().unwrap();
        assert_eq!(labels["kubernetes.io/os"], os, "{name}");
        assert_eq!(labels["kubernetes.io/arch"], arch, "{name}");
        assert_eq!(labels["family"], name);
        let taints = node.spec.as_ref().unwrap().taints.clone().unwrap_or_default();
        assert!(taints.iter().all(|t| t.key != "karpenter.sh/unregistered"), "{name}: {taints:?}");
        let pods = &node.status.as_ref().unwrap().capacity.as_ref().unwrap()["pods"].0;
        assert_eq!(pods, if os == "windows" { "110" } else { "29" }, "{name}");
    }
    until("eight running pods", || async { (world.running().await == 8).then_some(()) }).await;
    assert!(controller.logged("Unknown parameter in userData K8s settings").is_empty());
    // Nothing drifts of itself.
    for claim in world.claims().await {
        assert!(!condition(&claim, "Drifted"), "{claim:?}");
    }
    // A template of each class, and none once nobody needs it.
    let templates = world.launch_templates().await;
    assert!(templates.len() >= 8, "{templates:?}");
    within(MINUTES, "unused launch templates are removed", || async {
        world.launch_templates().await.is_empty().then_some(())
    })
    .await;
}

/// A user's own image, which is told nothing but what the user says.
fn custom(world: &World) -> Value {
    let config = json!({
        "apiVersion": "node.eks.aws/v1alpha1", "kind": "NodeConfig",
        "spec": {
            "cluster": {
                "name": CLUSTER, "apiServerEndpoint": world.env["CLUSTER_ENDPOINT"],
                "certificateAuthority": world.env["CLUSTER_CA_BUNDLE"], "cidr": "10.100.0.0/16",
            },
            "kubelet": {
                "config": {"maxPods": 29, "registerWithTaints": [
                    {"key": "karpenter.sh/unregistered", "effect": "NoExecute"}]},
                "flags": ["--node-labels=family=custom"],
            },
        },
    });
    let archive = format!(
        "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"B\"\n\n--B\nContent-Type: application/node.eks.aws\n\n{config}\n--B--\n"
    );
    json!({"amiFamily": "Custom", "userData": archive,
        "amiSelectorTerms": [{"name": "amazon-eks-node-al2023-x86_64-standard-1.35-*"}]})
}

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

/// Applies so that fields left out are taken away, too.
async fn replace(world: &World, object: &Value) {
    world.apply(&object.to_string()).await;
}

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
}
