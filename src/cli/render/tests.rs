//! What a launch would use, of every family with nothing and with everything set, and read by
//! what would read it.

use mailparse::MailHeaderMap as _;
use serde::Deserialize;
use serde_json::Value;

use super::*;

/// Every family with images of both architectures where it has both.
const FAMILIES: [&str; 7] =
    ["AL2", "AL2023", "Bottlerocket", "Windows2019", "Windows2022", "Windows2025", "Custom"];

fn args() -> Args {
    Args {
        nodeclass: PathBuf::new(),
        nodepool: None,
        instance_type: None,
        cluster_info: None,
        capacity_type: None,
        output: Output::Text,
    }
}

fn info() -> Info {
    serde_json::from_value(json!({
        "clusterName": "weasel-eks", "clusterEndpoint": "https://k.example", "clusterCABundle": "Y2E=",
        "clusterCIDR": "10.100.0.0/16", "clusterDNS": "10.100.0.10", "region": "us-east-1",
        "instanceProfile": "weasel-eks_123",
        "securityGroups": [{"id": "sg-1", "name": "nodes"}, {"id": "sg-2"}],
        "amis": [
            {"id": "ami-amd", "requirements": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]},
            {"id": "ami-arm", "requirements": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]}]},
        ],
    }))
    .unwrap()
}

fn class(family: &str, more: Value) -> EC2NodeClass {
    let mut spec = json!({"amiFamily": family, "role": "nodes"});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    EC2NodeClass::new("default", serde_json::from_value(spec).unwrap())
}

/// Every field that a family takes.
fn everything(family: &str) -> EC2NodeClass {
    let mut kubelet = json!({
        "clusterDNS": ["10.100.0.11"], "maxPods": 42, "cpuCFSQuota": false,
        "systemReserved": {"cpu": "100m", "memory": "200Mi"},
        "kubeReserved": {"cpu": "200m", "ephemeral-storage": "2Gi"},
        "evictionHard": {"memory.available": "5%", "nodefs.available": "10%"},
        "evictionSoft": {"memory.available": "8%"},
        "evictionSoftGracePeriod": {"memory.available": "1m"},
        "evictionMaxPodGracePeriod": 60,
        "imageGCHighThresholdPercent": 85, "imageGCLowThresholdPercent": 80,
    });
    if family != "Bottlerocket" {
        kubelet["podsPerCore"] = 10.into();
    }
    if family == "AL2023" {
        kubelet["topologyManagerPolicy"] = "single-numa-node".into();
        kubelet["clusterDNS"] = json!(["10.100.0.11", "10.100.0.12"]);
    }
    class(
        family,
        json!({
            "associatePublicIPAddress": false, "detailedMonitoring": true, "ipPrefixCount": 2,
            "instanceStorePolicy": "RAID0", "context": "c", "kubelet": kubelet,
            "cpuOptions": {"nestedVirtualization": "enabled"},
            "connectionTracking": {"tcpEstablishedTimeout": 300, "udpStreamTimeout": 120, "udpTimeout": 30},
            "metadataOptions": {"httpEndpoint": "enabled", "httpProtocolIPv6": "enabled",
                "httpPutResponseHopLimit": 3, "httpTokens": "optional"},
            "blockDeviceMappings": [{"deviceName": "/dev/xvda", "rootVolume": true, "ebs": {
                "deleteOnTermination": true, "encrypted": true, "iops": 4000, "kmsKeyID": "key-1",
                "snapshotID": "snap-1", "throughput": 250, "volumeInitializationRate": 100,
                "volumeSize": "100G", "volumeType": "gp3"}}],
            "networkInterfaces": [
                {"networkCardIndex": 0, "deviceIndex": 0, "interfaceType": "interface"},
                {"networkCardIndex": 1, "deviceIndex": 1, "interfaceType": "efa-only"}],
            "tags": {"team": "weasels", "Name": "node"},
            "userData": user_data(family),
        }),
    )
}

/// The user's own part.
fn user_data(family: &str) -> &'static str {
    match family {
        "AL2" => {
            "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"B\"\n\n--B\nContent-Type: text/cloud-config; charset=\"us-ascii\"\nX-Mine: 1\n\nruncmd:\n- echo hello\n--B\nContent-Type: text/x-shellscript; charset=\"us-ascii\"\n\n#!/bin/bash\necho hello\n--B--\n"
        }
        "AL2023" => {
            "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n  containerd:\n    config: |\n      [metrics]\n      address = \"127.0.0.1:1338\"\n"
        }
        "Bottlerocket" => {
            "[settings.kernel]\nlockdown = \"integrity\"\n[settings.kubernetes]\nallowed-unsafe-sysctls = [\"net.core.somaxconn\"]\nmax-pods = 5\nunheard-of = true\n[settings.kubernetes.node-labels]\nteam = \"nobody\"\nmine = \"kept\"\n[settings.kubernetes.node-taints]\nmine = [\"gone:NoSchedule\"]\n[settings.bootstrap-commands.my-command]\ncommands = [[\"apiclient\", \"set\", \"motd=hello\"]]\nmode = \"once\"\nessential = false\nunheard-of = 1\n[outside]\na = 1\n"
        }
        "Custom" => "anything at all",
        _ => "Write-Host \"hello\"",
    }
}

fn pool() -> NodePool {
    NodePool::new(
        "default",
        serde_json::from_value(json!({"template": {
            "metadata": {"labels": {"team": "weasels"}},
            "spec": {
                "taints": [{"key": "team", "value": "weasels", "effect": "NoSchedule"}, {"key": "bare", "effect": "NoExecute"}],
                "startupTaints": [{"key": "agent", "value": "wait", "effect": "NoSchedule"}],
                "requirements": [
                    {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["m5.large"]},
                    {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["us-east-1a"]},
                    {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"]}],
            }}}))
        .unwrap(),
    )
}

fn one(class: &EC2NodeClass, pool: Option<&NodePool>) -> Spec {
    let mut list = specs(&args(), &mut class.clone(), pool, &info(), &mut Vec::new()).unwrap();
    assert_eq!(list.len(), 1);
    list.remove(0)
}

fn both(family: &str) -> [Spec; 2] {
    [one(&class(family, json!({})), None), one(&everything(family), Some(&pool()))]
}

fn user_data_of(spec: &Spec) -> String {
    String::from_utf8(decoded(spec)).unwrap()
}

#[test]
fn every_family_with_nothing_and_with_everything_set() {
    for family in FAMILIES {
        for (spec, how) in both(family).iter().zip(["defaults", "everything"]) {
            // The name follows from the rest and from the SDK's own words for it.
            let shown = text(spec).replacen(&spec.name, "NAME", 1);
            insta::assert_snapshot!(format!("{}-{how}", family.to_lowercase()), shown);
        }
    }
}

/// Content types and bodies, as a MIME reader sees them.
fn parts(text: &str) -> Vec<(String, String)> {
    let mail = mailparse::parse_mail(text.as_bytes()).unwrap();
    assert_eq!(mail.ctype.mimetype, "multipart/mixed");
    assert_eq!(mail.headers.get_first_value("MIME-Version").as_deref(), Some("1.0"));
    mail.subparts.iter().map(|p| (p.ctype.mimetype.clone(), p.get_body().unwrap())).collect()
}

/// Fails unless a grammar takes the whole text.
fn parses(text: &str, language: &tree_sitter_c2rust::Language) {
    let mut parser = tree_sitter_c2rust::Parser::new();
    parser.set_language(language).unwrap();
    let tree = parser.parse(text, None).unwrap();
    assert!(!tree.root_node().has_error(), "{}\n{text}", tree.root_node().to_sexp());
}

#[test]
fn al2_is_read_by_a_mime_reader_and_a_shell() {
    let bash: tree_sitter_c2rust::Language = tree_sitter_bash::LANGUAGE.into();
    let [plain, full] = both("AL2").map(|spec| parts(&user_data_of(&spec)));
    assert_eq!(plain.len(), 1);
    let kinds: Vec<&str> = full.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["text/cloud-config", "text/x-shellscript", "text/x-shellscript"]);
    for (_, script) in plain.iter().chain(&full[1..]) {
        assert!(script.starts_with("#!/bin/bash"));
        parses(script, &bash);
    }
    assert!(full[2].1.contains("--local-disks raid0"));
    assert!(full[2].1.contains("--eviction-soft-grace-period=\"memory.available=1m0s\""));
}

/// A NodeConfig as nodeadm documents it; anything else is refused.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeConfig {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: Value,
    spec: NodeConfigSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeConfigSpec {
    cluster: Option<ClusterDetails>,
    #[allow(dead_code, reason = "read for its form")]
    containerd: Option<Containerd>,
    instance: Option<InstanceOptions>,
    kubelet: Option<KubeletOptions>,
    #[allow(dead_code, reason = "read for its form")]
    feature_gates: Option<std::collections::BTreeMap<String, bool>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClusterDetails {
    name: String,
    api_server_endpoint: String,
    certificate_authority: String,
    cidr: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code, reason = "read for its form")]
struct Containerd {
    config: Option<String>,
    base_runtime_spec: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct InstanceOptions {
    local_storage: LocalStorage,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LocalStorage {
    strategy: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KubeletOptions {
    config: serde_json::Map<String, Value>,
    #[serde(default)]
    flags: Vec<String>,
}

#[test]
fn al2023_is_read_by_a_mime_reader_and_as_a_node_config() {
    let [plain, full] = both("AL2023").map(|spec| parts(&user_data_of(&spec)));
    assert_eq!((plain.len(), full.len()), (1, 2));
    for (kind, body) in plain.iter().chain(&full) {
        assert_eq!(kind, "application/node.eks.aws");
        let config: NodeConfig = serde_saphyr::from_str(body).unwrap();
        assert_eq!(config.api_version, "node.eks.aws/v1alpha1");
        assert_eq!(config.kind, "NodeConfig");
        assert!(config.metadata.is_null() || config.metadata == json!({}));
    }
    let last: NodeConfig = serde_saphyr::from_str(&full[1].1).unwrap();
    let cluster = last.spec.cluster.unwrap();
    assert_eq!(
        [cluster.name, cluster.api_server_endpoint, cluster.certificate_authority, cluster.cidr],
        ["weasel-eks", "https://k.example", "Y2E=", "10.100.0.0/16"]
    );
    assert_eq!(last.spec.instance.unwrap().local_storage.strategy.as_deref(), Some("RAID0"));
    let kubelet = last.spec.kubelet.unwrap();
    assert_eq!(kubelet.flags.len(), 1);
    let mut as_class = class("AL2023", json!({}));
    let mut config = kubelet.config;
    assert!(config.remove("registerWithTaints").unwrap().as_array().unwrap().len() == 4);
    as_class.spec.kubelet = Some(config);
    assert_eq!(crate::cloud::aws::kubelet::check(&as_class), Vec::<String>::new());
}

/// Groups of settings that Bottlerocket's Kubernetes variants have.
const BOTTLEROCKET: &[&str] = &[
    "autoscaling",
    "aws",
    "bootstrap-commands",
    "bootstrap-containers",
    "boot",
    "cloudformation",
    "container-registry",
    "container-runtime",
    "container-runtime-plugins",
    "dns",
    "host-containers",
    "kernel",
    "kubelet-device-plugins",
    "kubernetes",
    "metrics",
    "motd",
    "network",
    "nvidia-container-runtime",
    "ntp",
    "oci-defaults",
    "oci-hooks",
    "pki",
    "updates",
];

#[test]
fn bottlerocket_is_read_as_settings() {
    for (spec, everything) in both("Bottlerocket").iter().zip([false, true]) {
        let document: toml::Table = user_data_of(spec).parse().unwrap();
        assert_eq!(document.keys().collect::<Vec<_>>(), ["settings"]);
        let settings = document["settings"].as_table().unwrap();
        for key in settings.keys() {
            assert!(BOTTLEROCKET.contains(&key.as_str()), "{key}");
        }
        let kubernetes = settings["kubernetes"].as_table().unwrap();
        assert_eq!(kubernetes["cluster-name"].as_str(), Some("weasel-eks"));
        assert_eq!(kubernetes["max-pods"].as_integer(), Some(if everything { 42 } else { 29 }));
        for list in kubernetes["node-taints"].as_table().unwrap().values() {
            for taint in list.as_array().unwrap() {
                assert!(taint.as_str().unwrap().contains(':'));
            }
        }
        if everything {
            assert!(!kubernetes.contains_key("unheard-of"));
            assert_eq!(kubernetes["node-labels"]["team"].as_str(), Some("weasels"));
            assert_eq!(kubernetes["node-labels"]["mine"].as_str(), Some("kept"));
            assert!(kubernetes["node-taints"].get("mine").is_none());
            let commands = settings["bootstrap-commands"].as_table().unwrap();
            let names: Vec<&String> = commands.keys().collect();
            assert_eq!(names, ["000-mount-instance-storage", "my-command"]);
            assert!(commands["my-command"].get("unheard-of").is_none());
            assert_eq!(
                kubernetes["eviction-soft-grace-period"]["memory.available"].as_str(),
                Some("1m0s")
            );
        }
    }
}

#[test]
fn windows_is_read_by_powershell() {
    let powershell: tree_sitter_c2rust::Language = tree_sitter_powershell::LANGUAGE.into();
    for family in ["Windows2019", "Windows2022", "Windows2025"] {
        for spec in both(family) {
            let text = user_data_of(&spec);
            let script = text.strip_prefix("<powershell>\n").unwrap();
            let script = script.strip_suffix("\n</powershell>").unwrap();
            parses(script, &powershell);
        }
    }
}

#[test]
fn custom_user_data_is_the_users_alone() {
    let [plain, full] = both("Custom").map(|spec| user_data_of(&spec));
    assert_eq!((plain.as_str(), full.as_str()), ("", "anything at all"));
}

fn error(class: &EC2NodeClass, args: &Args) -> String {
    specs(args, &mut class.clone(), None, &info(), &mut Vec::new()).unwrap_err().to_string()
}

#[test]
fn broken_input_names_its_field() {
    for (class, part) in [
        (class("Bottlerocket", json!({"userData": "[settings"})), "spec.userData"),
        (
            class("Bottlerocket", json!({"userData": "[settings.kubernetes]\nmax-pods = \"x\""})),
            "settings.kubernetes.max-pods: expected an integer",
        ),
        (class("Bottlerocket", json!({"userData": "settings = 1"})), "settings: expected a table"),
        (class("AL2", json!({"userData": "MIME-Version: 1.0\n\nx"})), "spec.userData"),
        (
            class(
                "AL2",
                json!({"userData": "Content-Type: multipart/mixed; boundary=B\n\n--B\n\nx"}),
            ),
            "the archive has no line --B--",
        ),
        (
            class(
                "AL2023",
                json!({"userData": "Content-Type: multipart/mixed; boundary=B\n\n--B\nContent-Type: application/node.eks.aws\n\na: [\n--B--"}),
            ),
            "expected a NodeConfig in YAML",
        ),
        (
            class("AL2023", json!({"userData": "apiVersion: node.eks.aws/v1alpha1\nkind: [\n"})),
            "expected a NodeConfig in YAML",
        ),
        (class("AL2023", json!({"kubelet": {"maxPods": -1}})), "spec.kubelet.maxPods"),
        (class("AL2", json!({"kubelet": {"cgroupRoot": "/"}})), "cgroupRoot"),
        (class("AL2", json!({"kubelet": {"maxPods": "vcpus"}})), "NodeClassCEL"),
        (
            class("Windows2022", json!({"userData": "<powershell>\nWrite-Host x\n</powershell>"})),
            "expected PowerShell without its tags",
        ),
        (class("AL2023", json!({"userData": "spec:\n- a: [\n"})), "expected a NodeConfig in YAML"),
        (class("AL2", json!({"tags": {"karpenter.sh/nodepool": "x"}})), "spec.tags"),
    ] {
        let text = error(&class, &args());
        assert!(text.contains(part), "{text}");
    }
    let unknown = Args { instance_type: Some("m5.enormous".to_owned()), ..args() };
    assert!(error(&class("AL2", json!({})), &unknown).contains("--instance-type: \"m5.enormous\""));
}

#[test]
fn expressions_are_worked_out_for_the_type() {
    let mut info = info();
    info.feature_gates.insert("NodeClassCEL".to_owned(), true);
    let kubelet = json!({"maxPods": "vcpus * 8", "systemReserved": {"cpu": "10m"},
        "kubeReserved": {"cpu": "vcpus * 31", "memory": "memory_mib / 100 + max_pods"}});
    let rendered = |family: &str, kubelet: &Value, kind: &str| {
        let args = Args { instance_type: Some(kind.to_owned()), ..args() };
        let mut class = class(family, json!({"kubelet": kubelet}));
        specs(&args, &mut class, None, &info, &mut Vec::new()).map(|list| user_data_of(&list[0]))
    };
    let text = rendered("AL2", &kubelet, "m5.large").unwrap();
    assert!(text.contains("--max-pods=16 "), "{text}");
    assert!(text.contains("--kube-reserved=\"cpu=70m,memory=112Mi\""), "{text}");
    assert!(text.contains("--system-reserved=\"cpu=10m\""), "{text}");
    let larger = rendered("AL2023", &kubelet, "m5.4xlarge").unwrap();
    assert!(larger.contains("maxPods: 128\n") && larger.contains("cpu: 500m\n"), "{larger}");
    let broken = rendered("AL2", &json!({"maxPods": "cores"}), "m5.large").unwrap_err();
    assert!(broken.to_string().contains("field=spec.kubelet.maxPods"), "{broken}");
    let negative = rendered("AL2", &json!({"maxPods": "vcpus - 9"}), "m5.large").unwrap_err();
    assert!(
        negative.to_string().starts_with("spec.kubelet.maxPods: resolving maxPods"),
        "{negative}"
    );
}

#[test]
fn the_placement_group_is_that_of_the_file_or_the_selector() {
    let group = |info: &Info, notes: &mut Vec<String>| {
        let mut class = class("AL2023", json!({"placementGroupSelector": {"name": "g"}}));
        let list = specs(&args(), &mut class, None, info, notes).unwrap();
        body(&list[0].data)["Placement"]["GroupId"].clone()
    };
    let mut notes = Vec::new();
    assert_eq!(group(&info(), &mut notes), "pg-SELECTED");
    assert!(notes[0].starts_with("placementGroup"), "{notes:?}");
    let known = serde_json::from_value(json!({"placementGroup": {"id": "pg-1"}})).unwrap();
    assert_eq!(group(&known, &mut Vec::new()), "pg-1");
}

#[test]
fn a_type_that_would_not_be_launched_is_reported() {
    let notes = |kind: &str, class: &EC2NodeClass| {
        let args = Args { instance_type: Some(kind.to_owned()), ..args() };
        let mut pool = pool();
        pool.spec.template.spec.node_class_ref.name = "default".to_owned();
        let mut notes = Vec::new();
        specs(&args, &mut class.clone(), Some(&pool), &info(), &mut notes).unwrap();
        notes
    };
    let default = class("AL2023", json!({}));
    assert_eq!(notes("m5.large", &default), Vec::<String>::new());
    let other = notes("m5.xlarge", &default);
    assert!(
        other[0].starts_with("--instance-type: the NodePool does not allow m5.xlarge: "),
        "{other:?}"
    );
    assert!(notes("a1.large", &default)[0].contains("do not boot on a1.large"));
    let mut renamed = default.clone();
    renamed.metadata.name = Some("another".to_owned());
    assert!(notes("m5.large", &renamed)[0].contains("names the class \"default\""));
}

#[test]
fn what_is_not_known_is_reported() {
    let mut notes = Vec::new();
    let mut class = class("AL2023", json!({"amiSelectorTerms": [{"alias": "al2023@latest"}]}));
    let list = specs(&args(), &mut class, None, &Info::default(), &mut notes).unwrap();
    assert_eq!(list[0].image_id, "ami-AMD64");
    for part in [
        "clusterName",
        "clusterEndpoint",
        "clusterCABundle",
        "clusterCIDR",
        "amis",
        "securityGroups",
        "instanceProfile",
    ] {
        assert!(notes.iter().any(|n| n.starts_with(part)), "{part}: {notes:?}");
    }
}

#[test]
fn the_founding_manifests_are_rendered() {
    let manifests =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/weasel-eks/manifests.yaml");
    let found = Args { nodeclass: manifests.clone(), nodepool: Some(manifests), ..args() };
    let (text, _) = render(&found).unwrap();
    assert!(text.contains(" for t3.medium"), "{text}");
    assert!(text.contains("\"ImageId\": \"ami-09c00c2e93ce7bd23\""), "{text}");
    assert!(text.contains("/etc/eks/bootstrap.sh 'CLUSTER_NAME'"), "{text}");
}

#[test]
fn files_are_read_by_kind() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let both = "apiVersion: karpenter.sh/v1\nkind: NodePool\nmetadata: {name: p}\nspec: {template: {spec: {requirements: []}}}\n---\napiVersion: karpenter.k8s.aws/v1\nkind: EC2NodeClass\nmetadata: {name: c}\nspec: {amiFamily: AL2, role: r}\n";
    let path = write("both.yaml", both);
    let found = Args { nodeclass: path.clone(), nodepool: Some(path.clone()), ..args() };
    let (text, _) = render(&found).unwrap();
    assert!(text.contains("karpenter.sh/nodepool=p"), "{text}");
    let machine = Args { output: Output::Json, ..found };
    let list: Vec<Value> = serde_json::from_str(&render(&machine).unwrap().0).unwrap();
    assert_eq!(list[0]["instanceTypes"], json!(["m5.large"]));
    let problem = |text: &str| {
        let nodeclass = write("broken.yaml", text);
        render(&Args { nodeclass, ..args() }).unwrap_err().to_string()
    };
    assert!(
        problem("kind: NodePool").contains("expected one object of kind EC2NodeClass, found 0")
    );
    assert!(problem("a: [").contains("document 1: "));
    assert!(
        problem("apiVersion: karpenter.k8s.aws/v1alpha5\nkind: EC2NodeClass")
            .contains("is not served, expected karpenter.k8s.aws/v1 or karpenter.k8s.aws/v1beta1")
    );
    assert!(
        problem("apiVersion: karpenter.k8s.aws/v1\nkind: EC2NodeClass\nspec: {detailedMonitoring: maybe}")
            .contains("spec.detailedMonitoring")
    );
    let conflict = "apiVersion: karpenter.k8s.aws/v1\nkind: EC2NodeClass\nmetadata: {name: c}\nspec:\n  role: r\n  amiSelectorTerms: [{alias: al2023@latest}, {id: ami-1}]\n  subnetSelectorTerms: [{id: subnet-1}]\n  securityGroupSelectorTerms: [{id: sg-1}]\n";
    assert!(problem(conflict).contains("spec.amiSelectorTerms"), "{}", problem(conflict));
    let unknown = conflict.replace("role: r", "rolle: r");
    assert!(problem(&unknown).contains("spec.rolle"), "{}", problem(&unknown));
    let info = write("info.yaml", "clusterNam: x\n");
    assert!(input::info(&info).unwrap_err().to_string().contains("clusterNam"));
}
