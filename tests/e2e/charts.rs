//! The Helm charts: what they render, that a cluster takes it, and that the rights they give are enough.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::chain::one_initialized;
use crate::support::world::root;
use crate::support::{Controller, World, until};

mod release;

/// The helm binary, built where it is missing.
fn helm() -> PathBuf {
    static HELM: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let world = root().join("tests/env/world");
        let out = Command::new(world).arg("helm").output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        PathBuf::from(String::from_utf8(out.stdout).unwrap().trim())
    };
    HELM.get_or_init(find).clone()
}

/// Runs helm in the repository; gives what it printed, or what it complained of.
fn run_helm(words: &[&str]) -> Result<String, String> {
    let out = Command::new(helm()).args(words).current_dir(root()).output().unwrap();
    if out.status.success() {
        return Ok(String::from_utf8(out.stdout).unwrap());
    }
    Err(String::from_utf8_lossy(&out.stderr).into_owned())
}

fn documents(text: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    all.into_iter().filter(|d| !d.is_null()).collect()
}

/// Renders `charts/NAME` for a release in a namespace of the same name.
fn render(chart: &str, words: &[&str]) -> Vec<Value> {
    let path = format!("charts/{chart}");
    let fixed = ["template", "karpenter", &path, "--namespace", "karpenter"];
    documents(&run_helm(&[&fixed, words].concat()).unwrap())
}

fn file(name: &str) -> String {
    root().join("tests/e2e/charts").join(name).to_string_lossy().into_owned()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let fits = |o: &&Value| o["kind"] == kind && o["metadata"]["name"] == name;
    objects.iter().find(fits).unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn container(objects: &[Value], name: &str) -> Value {
    find(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"][0].clone()
}

/// The environment that the Deployment gives the controller; what the cluster fills in is left out.
fn environment(container: &Value) -> BTreeMap<String, String> {
    let list = container["env"].as_array().unwrap().iter();
    list.filter_map(|e| Some((e["name"].as_str()?.to_owned(), e["value"].as_str()?.to_owned())))
        .collect()
}

const NAMED: &[&str] = &["--set", "settings.clusterName=weasel-eks"];

#[test]
fn the_versions_are_the_packages() {
    for chart in ["karpenter", "karpenter-crd"] {
        let text = std::fs::read_to_string(root().join(format!("charts/{chart}/Chart.yaml")));
        let chart: Value = serde_saphyr::from_str(&text.unwrap()).unwrap();
        assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    }
}

#[test]
fn the_objects_have_karpenters_names() {
    let objects = render("karpenter", NAMED);
    let names: BTreeSet<String> = objects
        .iter()
        .map(|o| {
            let meta = &o["metadata"];
            let text = |v: &Value| v.as_str().unwrap_or("-").to_owned();
            format!("{} {} {}", text(&o["kind"]), text(&meta["namespace"]), text(&meta["name"]))
        })
        .collect();
    let wanted = [
        "ClusterRole - karpenter",
        "ClusterRole - karpenter-admin",
        "ClusterRole - karpenter-core",
        "ClusterRoleBinding - karpenter",
        "ClusterRoleBinding - karpenter-core",
        "ConfigMap karpenter karpenter-prices",
        "Deployment karpenter karpenter",
        "PodDisruptionBudget karpenter karpenter",
        "Role karpenter karpenter",
        "Role kube-system karpenter-dns",
        "RoleBinding karpenter karpenter",
        "RoleBinding kube-system karpenter-dns",
        "Secret karpenter karpenter-cert",
        "Service karpenter karpenter",
        "ServiceAccount karpenter karpenter",
    ];
    assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), wanted);
    for object in &objects {
        let labels = object["metadata"]["labels"].as_object().unwrap();
        assert_eq!(labels["app.kubernetes.io/name"], "karpenter");
        assert_eq!(labels["app.kubernetes.io/managed-by"], "Helm");
        assert_eq!(labels["helm.sh/chart"], concat!("karpenter-", env!("CARGO_PKG_VERSION")));
    }
    let without = render("karpenter", &[NAMED, &["--set", "webhook.conversion=false"]].concat());
    assert!(without.iter().all(|o| o["kind"] != "Secret"));
    assert_eq!(
        find(&without, "Service", "karpenter")["spec"]["ports"].as_array().unwrap().len(),
        1
    );
    assert_eq!(environment(&container(&without, "karpenter"))["WEBHOOK_PORT"], "0");
}

#[test]
fn the_environment_has_karpenters_names_in_its_order() {
    let container = container(&render("karpenter", NAMED), "karpenter");
    let list = container["env"].as_array().unwrap();
    let names: Vec<&str> = list.iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "KUBERNETES_MIN_VERSION",
            "KARPENTER_SERVICE",
            "WEBHOOK_PORT",
            "LOG_LEVEL",
            "LOG_OUTPUT_PATHS",
            "LOG_ERROR_OUTPUT_PATHS",
            "METRICS_PORT",
            "HEALTH_PROBE_PORT",
            "SYSTEM_NAMESPACE",
            "CPU_REQUESTS",
            "MEMORY_LIMIT",
            "FEATURE_GATES",
            "AWS_FEATURE_GATES",
            "BATCH_MAX_DURATION",
            "BATCH_IDLE_DURATION",
            "PREFERENCE_POLICY",
            "MIN_VALUES_POLICY",
            "CLUSTER_NAME",
            "VM_MEMORY_OVERHEAD_PERCENT",
            "RESERVED_ENIS",
            "AMI_REFRESH_INTERVAL",
            "SUBNET_REFRESH_INTERVAL",
            "SECURITY_GROUP_REFRESH_INTERVAL",
        ]
    );
    let values = environment(&container);
    for (name, value) in [
        ("KARPENTER_SERVICE", "karpenter"),
        ("METRICS_PORT", "8080"),
        ("HEALTH_PROBE_PORT", "8081"),
        ("BATCH_MAX_DURATION", "10s"),
        ("VM_MEMORY_OVERHEAD_PERCENT", "0.075"),
        ("RESERVED_ENIS", "0"),
        (
            "FEATURE_GATES",
            "ReservedCapacity=true,SpotToSpotConsolidation=false,NodeRepair=false,NodeOverlay=false,StaticCapacity=false,CapacityBuffer=false,TerminateFirstDrift=false,TerminateFirstRepair=false,PodDeletionCostManagement=false",
        ),
    ] {
        assert_eq!(values[name], value, "{name}");
    }
    assert_eq!(
        container["securityContext"],
        json!({"privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
            "capabilities": {"drop": ["ALL"]}})
    );
}

#[test]
fn every_value_has_its_effect() {
    let monitors = "monitoring.coreos.com/v1";
    let values = file("everything.yaml");
    let objects = render("karpenter", &["-f", &values, "--api-versions", monitors]);
    let name = "node-launcher";
    let deployment = find(&objects, "Deployment", name);
    let pod = &deployment["spec"]["template"]["spec"];
    let launcher = container(&objects, name);
    let env = environment(&launcher);
    for (variable, value) in [
        ("CLUSTER_NAME", "label-cluster"),
        ("VM_MEMORY_OVERHEAD_PERCENT", "0"),
        ("IGNORE_DRA_REQUESTS", "false"),
        ("LOG_OUTPUT_PATHS", "stdout,/dev/null"),
        ("ISOLATED_VPC", "true"),
        ("EKS_CONTROL_PLANE", "true"),
        ("ENABLE_ZONAL_SHIFT", "true"),
        ("DISABLE_DRY_RUN", "true"),
        ("DISABLE_CLUSTER_STATE_OBSERVABILITY", "true"),
        ("INTERRUPTION_QUEUE", "queue"),
        ("CLUSTER_ENDPOINT", "https://example"),
        ("CLUSTER_CA_BUNDLE", "Q0E="),
        ("AWS_REGION", "us-east-1"),
        (
            "AWS_FEATURE_GATES",
            "NodeClassCEL=true,DRANVIDIAGPU=true,DRAEFA=true,RebootForRepair=true",
        ),
        ("SECURITY_GROUP_REFRESH_INTERVAL", "7m"),
        (
            "FEATURE_GATES",
            "ReservedCapacity=false,SpotToSpotConsolidation=true,NodeRepair=true,NodeOverlay=true,StaticCapacity=true,CapacityBuffer=true,TerminateFirstDrift=true,TerminateFirstRepair=true,PodDeletionCostManagement=true",
        ),
    ] {
        assert_eq!(env.get(variable).map(String::as_str), Some(value), "{variable}");
    }
    let digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    assert_eq!(launcher["image"], format!("registry.example/karpenter:v9@{digest}"));
    assert_eq!(launcher["securityContext"]["seLinuxOptions"]["level"], "s0:c1,c2");
    assert_eq!(launcher["volumeMounts"].as_array().unwrap().len(), 1);
    assert_eq!(pod["containers"][1]["volumeMounts"].as_array().unwrap().len(), 2);
    let labels = &json!({"matchLabels": {"app.kubernetes.io/name": "karpenter", "app.kubernetes.io/instance": "karpenter"}});
    let affinity = &pod["affinity"];
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    assert_eq!(
        &affinity["podAntiAffinity"][preferred][0]["podAffinityTerm"]["labelSelector"],
        labels
    );
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    assert_eq!(
        affinity["podAffinity"][required][0]["labelSelector"],
        json!({"matchLabels": {"app": "friend"}})
    );
    assert_eq!(&pod["topologySpreadConstraints"][0]["labelSelector"], labels);
    let monitor = &find(&objects, "ServiceMonitor", name)["spec"];
    assert_eq!(monitor["sampleLimit"], 0);
    assert_eq!(monitor["endpoints"][0]["scrapeTimeout"], "30s");
    let monitor = find(&objects, "PodMonitor", name);
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    assert_eq!(monitor["spec"]["selector"], *labels);
    assert_eq!(monitor["spec"]["sampleLimit"], 100_000);
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!(
        (&endpoint["port"], &endpoint["scrapeTimeout"]),
        (&json!("http-metrics"), &json!("20s"))
    );
    let account = find(&objects, "ServiceAccount", "launcher");
    assert_eq!(
        account["metadata"]["annotations"],
        json!({"owner": "platform",
            "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/KarpenterControllerRole-weasel-eks"})
    );
    let core = &find(&objects, "ClusterRole", "node-launcher-core")["rules"];
    assert!(core.as_array().unwrap().iter().any(|r| r["apiGroups"][0] == "resource.k8s.io"));
    // The binary reads what the chart writes.
    let help = Command::new(env!("CARGO_BIN_EXE_karpenter")).arg("--help").output();
    let help = help.unwrap();
    let help = String::from_utf8([help.stdout, help.stderr].concat()).unwrap();
    let chart_only = ["KUBERNETES_MIN_VERSION", "SYSTEM_NAMESPACE", "AWS_REGION"];
    for variable in launcher["env"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap())
    {
        assert!(
            chart_only.contains(&variable) || help.contains(&format!("({variable})")),
            "{variable} is no setting"
        );
    }
}

#[test]
fn services_may_be_read_where_default_spread_constraints_need_them() {
    let readable = |more: &[&str]| {
        let objects = render("karpenter", &[&["--set", "settings.clusterName=c"], more].concat());
        let roles = objects.iter().filter(|o| o["kind"] == "ClusterRole");
        let rules: Vec<&Value> = roles.filter_map(|r| r["rules"].as_array()).flatten().collect();
        rules.iter().any(|r| {
            r["resources"].as_array().is_some_and(|list| list.contains(&json!("services")))
        })
    };
    assert!(!readable(&[]));
    let set = [
        "--set",
        "controller.env[0].name=SCHEDULER_CONFIG,controller.env[0].value=defaultConstraints",
    ];
    assert!(readable(&set));
}

#[test]
fn old_values_render_and_missing_ones_are_named() {
    let objects = render("karpenter", &["-f", &file("0.37.yaml")]);
    let env = environment(&container(&objects, "karpenter"));
    assert_eq!(env["METRICS_PORT"], "8000");
    assert_eq!(env["WEBHOOK_PORT"], "8443");
    assert!(objects.iter().any(|o| o["kind"] == "Secret"), "the conversion webhook is off");
    let error = run_helm(&["template", "karpenter", "charts/karpenter"]).unwrap_err();
    let text = "Chart cannot be installed without a valid settings.clusterName!";
    assert!(error.contains(text), "{error}");
}

/// What helm complains of when these values are set.
fn complaint(values: &[&str]) -> String {
    let set = values.iter().flat_map(|v| ["--set", *v]);
    let words: Vec<&str> = ["template", "karpenter", "charts/karpenter"]
        .into_iter()
        .chain(NAMED.iter().copied())
        .chain(set)
        .collect();
    run_helm(&words).unwrap_err()
}

#[test]
fn values_that_the_chart_does_not_have_are_refused_with_the_nearest_name() {
    let error = complaint(&["settings.batchIdleDurations=1s", "replicaCount=3", "xyzzyxyzzy=1"]);
    assert!(
        error.contains("settings.batchIdleDurations, did you mean settings.batchIdleDuration?"),
        "{error}"
    );
    assert!(error.contains("replicaCount, did you mean replicas?"), "{error}");
    assert!(error.contains("xyzzyxyzzy\n"), "{error}");
    let error = complaint(&["replicas=two", "settings.featureGates.nodeRepair=maybe"]);
    assert!(error.contains("replicas") && error.contains("want integer"), "{error}");
    assert!(error.contains("featureGates") && error.contains("nodeRepair"), "{error}");
}

#[test]
fn every_default_is_in_the_schema() {
    let read = |name: &str| std::fs::read_to_string(root().join("charts/karpenter").join(name));
    let values: Value = serde_saphyr::from_str(&read("values.yaml").unwrap()).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json").unwrap()).unwrap();
    fn missing(values: &Value, schema: &Value, path: &str, found: &mut Vec<String>) {
        let Some(known) = schema["properties"].as_object() else { return };
        for (name, value) in values.as_object().into_iter().flatten() {
            match known.get(name) {
                Some(schema) => missing(value, schema, &format!("{path}{name}."), found),
                None => found.push(format!("{path}{name}")),
            }
        }
    }
    let mut found = Vec::new();
    missing(&values, &schema, "", &mut found);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn values_of_1_15_exclude_each_other_as_there() {
    let dra = |more: &str| complaint(&["settings.enableDRA=true", more]);
    for more in ["ignoreDRARequests=false", "awsFeatureGates.draEFA=true"] {
        let error = dra(&format!("settings.{more}"));
        assert!(error.contains("settings.enableDRA cannot be set together"), "{error}");
    }
    let error = complaint(&[
        "settings.legacyNodeRepair=true",
        "settings.featureGates.terminateFirstRepair=true",
    ]);
    assert!(error.contains("settings.legacyNodeRepair cannot be set together"), "{error}");

    let objects = render("karpenter", &[NAMED, &["--set", "settings.enableDRA=true"]].concat());
    let env = environment(&container(&objects, "karpenter"));
    assert_eq!(env["IGNORE_DRA_REQUESTS"], "false");
    assert!(env["AWS_FEATURE_GATES"].contains("DRANVIDIAGPU=true,DRAEFA=true"));
    let core = find(&objects, "ClusterRole", "karpenter-core")["rules"].to_string();
    assert!(core.contains("resourceclaims"), "{core}");
    let legacy =
        render("karpenter", &[NAMED, &["--set", "settings.legacyNodeRepair=true"]].concat());
    assert_eq!(environment(&container(&legacy, "karpenter"))["LEGACY_NODE_REPAIR"], "true");
}

/// Each port that a NetworkPolicy lets in, with the peers that may use it (null: all).
fn let_in(policy: &Value) -> BTreeMap<String, Value> {
    let rules = policy["spec"]["ingress"].as_array().unwrap();
    rules
        .iter()
        .map(|r| (r["ports"][0]["port"].as_str().unwrap().to_owned(), r["from"].clone()))
        .collect()
}

#[test]
fn a_network_policy_lets_in_each_port_of_the_container_and_nothing_else() {
    let on = |more: &[&str]| {
        let set = ["--set", "networkPolicy.enabled=true"];
        render("karpenter", &[NAMED, &set, more].concat())
    };
    for more in
        [&[][..], &["--set", "settings.api.enabled=true"], &["--set", "webhook.conversion=false"]]
    {
        let objects = on(more);
        let policy = find(&objects, "NetworkPolicy", "karpenter");
        let ports: BTreeSet<String> = let_in(policy).into_keys().collect();
        let container = container(&objects, "karpenter");
        let served = container["ports"].as_array().unwrap().iter();
        let served: BTreeSet<String> =
            served.map(|p| p["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ports, served, "{more:?}");
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]));
        let pods = &find(&objects, "Deployment", "karpenter")["spec"]["selector"];
        assert_eq!(&policy["spec"]["podSelector"], pods);
    }
    let off = render("karpenter", NAMED);
    assert!(off.iter().all(|o| o["kind"] != "NetworkPolicy" && o["kind"] != "PodMonitor"));

    let objects = render("karpenter", &["-f", &file("everything.yaml")]);
    let policy = find(&objects, "NetworkPolicy", "node-launcher");
    let rules = let_in(policy);
    assert_eq!(rules["http-metrics"][0]["namespaceSelector"]["matchLabels"]["name"], "monitoring");
    assert_eq!(rules["https-webhook"][0]["ipBlock"]["cidr"], "10.0.0.0/16");
    assert_eq!(rules["http"], Value::Null, "the kubelet has no selector");
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(policy["spec"]["egress"][0]["ports"][0]["port"], 443);
}

#[test]
fn the_charts_page_lists_the_values_as_they_are() {
    let check = Command::new("python3")
        .args(["-B", "charts/readme.py", "--check"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let page = std::fs::read_to_string(root().join("charts/karpenter/README.md")).unwrap();
    for row in [
        "| `settings.batchIdleDuration` | string | `1s` |",
        "| `networkPolicy.enabled` | boolean | `false` |",
    ] {
        assert!(page.contains(row), "{row}");
    }
}

#[test]
fn both_charts_are_packed_with_everything_they_read() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().to_string_lossy().into_owned();
    for (chart, files) in [
        ("karpenter", ["crds/karpenter.sh_nodepools.yaml", "files/values.schema.json"]),
        ("karpenter-crd", ["files/karpenter.sh_nodepools.yaml", "templates/crds.yaml"]),
    ] {
        run_helm(&["package", &format!("charts/{chart}"), "--destination", &target]).unwrap();
        let archive = format!("{target}/{chart}-{}.tgz", env!("CARGO_PKG_VERSION"));
        let list = Command::new("tar").args(["-tzf", &archive]).output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        for file in files {
            assert!(list.lines().any(|l| l == format!("{chart}/{file}")), "{file}: {list}");
        }
        let fixed = ["template", "karpenter", &archive, "--namespace", "karpenter"];
        let set = ["--set", "settings.clusterName=packed"];
        let words = if chart == "karpenter" { [&fixed[..], &set].concat() } else { fixed.to_vec() };
        let packed = documents(&run_helm(&words).unwrap());
        let unpacked = render(chart, if chart == "karpenter" { &set } else { &[] });
        assert_eq!(packed, unpacked, "{chart}");
    }
}

#[test]
fn empty_values_render_as_if_they_were_left_out() {
    let objects = render(
        "karpenter",
        &[
            NAMED,
            &["--set", "controller.containerName=", "--set", "controller.securityContext=null"],
            &["--set", "affinity=null,settings.featureGates=null"],
        ]
        .concat(),
    );
    let container = container(&objects, "karpenter");
    assert_eq!(container["name"], "controller");
    assert!(environment(&container)["FEATURE_GATES"].starts_with("ReservedCapacity=true,"));
}

#[test]
fn the_crd_chart_is_the_crds_folder() {
    let rendered = render("karpenter-crd", &["--namespace", "kube-system"]);
    let folder = std::fs::read_dir(root().join("crds")).unwrap();
    let files: Vec<Value> = folder
        .flat_map(|entry| documents(&std::fs::read_to_string(entry.unwrap().path()).unwrap()))
        .collect();
    assert_eq!(rendered.len(), files.len());
    for crd in &files {
        let name = crd["metadata"]["name"].as_str().unwrap();
        let of_chart = find(&rendered, "CustomResourceDefinition", name);
        // Helm reads numbers as floats; they are equal as text.
        assert_eq!(canonical(of_chart), canonical(crd), "{name}");
    }
    let packed = run_helm(&["show", "crds", "charts/karpenter"]).unwrap();
    assert_eq!(documents(&packed).len(), files.len());

    let there = render("karpenter-crd", &["--set", "additionalAnnotations.a=b"]);
    let pools = find(&there, "CustomResourceDefinition", "nodepools.karpenter.sh");
    assert_eq!(pools["metadata"]["annotations"]["a"], "b");
    let webhook = &pools["spec"]["conversion"]["webhook"]["clientConfig"]["service"];
    assert_eq!(webhook["namespace"], "karpenter");
    let off = render("karpenter-crd", &["--set", "webhook.enabled=false"]);
    let pools = find(&off, "CustomResourceDefinition", "nodepools.karpenter.sh");
    assert!(pools["spec"].get("conversion").is_none());
    let served = |version: &str| {
        let all = pools["spec"]["versions"].as_array().unwrap();
        all.iter().find(|v| v["name"] == version).unwrap()["served"].clone()
    };
    assert_eq!((served("v1"), served("v1beta1")), (json!(true), json!(false)));
}

/// The value as text, keys sorted and whole floats written as integers.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, String> =
                map.iter().map(|(k, v)| (k, canonical(v))).collect();
            format!("{sorted:?}")
        }
        Value::Array(list) => format!("{:?}", list.iter().map(canonical).collect::<Vec<_>>()),
        Value::Number(number) => number.as_f64().unwrap_or_default().to_string(),
        other => other.to_string(),
    }
}

/// The commands of the founding document, the address of the chart aside.
const FOUNDING: &[&str] = &[
    "--namespace",
    "karpenter",
    "--set",
    "settings.clusterName=weasel-eks",
    "--set",
    r"serviceAccount.annotations.eks\.amazonaws\.com/role-arn=arn:aws:iam::123456789012:role/KarpenterControllerRole-weasel-eks",
    "--set",
    "controller.resources.requests.cpu=1",
    "--set",
    "controller.resources.requests.memory=1Gi",
    "--set",
    "controller.resources.limits.cpu=1",
    "--set",
    "controller.resources.limits.memory=1Gi",
];

/// A kubeconfig of the chart's service account.
fn service_account(world: &World) -> String {
    let words = ["create", "token", "karpenter", "--namespace", "karpenter", "--duration", "1h"];
    let token = world.kubectl(&words);
    let text = std::fs::read_to_string(&world.env["KUBECONFIG"]).unwrap();
    let mut config: Value = serde_saphyr::from_str(&text).unwrap();
    config["users"][0]["user"] = json!({"token": token.trim()});
    let path = world.dir.join("kubeconfig-karpenter");
    std::fs::write(&path, config.to_string()).unwrap();
    path.to_string_lossy().into_owned()
}

/// How often the API server has refused a request for want of rights.
fn refused(world: &World) -> BTreeMap<String, f64> {
    let text = world.kubectl(&["get", "--raw", "/metrics"]);
    let lines = text.lines().filter(|l| l.starts_with("apiserver_request_total{"));
    lines
        .filter(|l| l.contains(r#"code="403""#))
        .filter_map(|l| l.rsplit_once(' '))
        .map(|(series, count)| (series.to_owned(), count.parse().unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_founding_commands_install_a_controller_whose_rights_are_enough() {
    let world = World::bare(&[]).await;
    world.kubectl(&["create", "namespace", "karpenter"]);
    for crd in
        ["karpenter.sh_nodepools", "karpenter.k8s.aws_ec2nodeclasses", "karpenter.sh_nodeclaims"]
    {
        world.kubectl(&[
            "create",
            "-f",
            &root().join(format!("crds/{crd}.yaml")).to_string_lossy(),
        ]);
    }
    world.kubectl(&["wait", "--for=condition=Established", "crd", "--all"]);
    let fixed = ["template", "karpenter", "charts/karpenter", "--version", "0.37.0"];
    let rendered = run_helm(&[&fixed, FOUNDING].concat()).unwrap();
    world.kubectl_with(&["apply", "-f", "-"], &rendered).unwrap();
    let objects = documents(&rendered);
    let launcher = container(&objects, "karpenter");
    assert_eq!(
        launcher["resources"],
        json!({"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": 1, "memory": "1Gi"}})
    );
    let before = refused(&world);

    // The controller as the Deployment would run it, but for ports and addresses.
    let kubeconfig = service_account(&world);
    let ours = ["METRICS_PORT", "HEALTH_PROBE_PORT", "WEBHOOK_PORT"];
    let env = environment(&launcher);
    let mut settings: Vec<(&str, &str)> = env
        .iter()
        .filter(|(name, _)| !ours.contains(&name.as_str()))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    settings.extend([
        ("KUBECONFIG", kubeconfig.as_str()),
        ("SYSTEM_NAMESPACE", "karpenter"),
        ("DISABLE_LEADER_ELECTION", "false"),
    ]);
    let mut controller = Controller::with(&world, &settings);
    world.apply_file("examples/weasel-eks/manifests.yaml").await;
    world.apply_file("examples/weasel-eks/inflate.yaml").await;
    world.scale("inflate", 3);
    one_initialized(&world).await;
    until("three running pods", || async { (world.running().await == 3).then_some(()) }).await;
    let lease = world.kubectl(&["get", "lease", "-n", "karpenter", "-o", "name"]);
    assert_eq!(lease.trim(), "lease.coordination.k8s.io/karpenter-leader-election");
    world.scale("inflate", 0);
    until("the claim gone", || async { world.claims().await.is_empty().then_some(()) }).await;

    assert_eq!(refused(&world), before, "the chart's roles lack something");
    assert!(controller.lines().iter().all(|l| !l.contains("forbidden")), "something is forbidden");
    // Told to stop, it gives the lease up at once.
    assert_eq!(controller.stop(), Some(0));
    let holder = world.kubectl(&[
        "get",
        "lease",
        "karpenter-leader-election",
        "-n",
        "karpenter",
        "-o",
        "jsonpath={.spec.holderIdentity}",
    ]);
    assert_eq!(holder, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_installs_and_upgrades_both_charts() {
    let world = World::bare(&[]).await;
    let kubeconfig = world.env["KUBECONFIG"].clone();
    let helm = |words: &[&str]| {
        run_helm(&[words, &["--namespace", "karpenter", "--kubeconfig", &kubeconfig]].concat())
            .unwrap_or_else(|e| panic!("helm {words:?}: {e}"))
    };
    helm(&["install", "karpenter-crd", "charts/karpenter-crd", "--create-namespace"]);
    world.kubectl(&["wait", "--for=condition=Established", "crd", "--all"]);
    helm(&[&["install", "karpenter", "charts/karpenter", "--skip-crds"], NAMED].concat());
    // What the controller has put into the Secret stays there.
    let secret = ["secret", "karpenter-cert", "-n", "karpenter"];
    world.kubectl(
        &[&["patch"], &secret[..], &["-p", r#"{"stringData":{"ca-cert.pem":"x"}}"#]].concat(),
    );
    let values = file("0.37.yaml");
    helm(&["upgrade", "karpenter", "charts/karpenter", "--skip-crds", "-f", &values]);
    helm(&["upgrade", "karpenter-crd", "charts/karpenter-crd"]);
    let data = world.kubectl(&[&["get"], &secret[..], &["-o", "jsonpath={.data}"]].concat());
    assert!(data.contains("ca-cert.pem"), "{data}");

    // With every value of ours set the API server takes it, too.
    let everything = file("everything.yaml");
    let rendered =
        run_helm(&["template", "all", "charts/karpenter", "-n", "karpenter", "-f", &everything]);
    world.kubectl_with(&["apply", "--dry-run=server", "-f", "-"], &rendered.unwrap()).unwrap();

    // A file of 1.15 with every value set installs.
    let values = file("1.15.yaml");
    helm(&["upgrade", "karpenter", "charts/karpenter", "--skip-crds", "-f", &values]);
    let deployment = ["get", "deployment", "node-launcher", "-n", "karpenter", "-o", "name"];
    assert_eq!(world.kubectl(&deployment).trim(), "deployment.apps/node-launcher");
    helm(&["uninstall", "karpenter"]);
}

#[test]
fn dashboards_and_alerts_are_made_when_they_are_asked_for() {
    let words = ["--set", "settings.clusterName=c", "--api-versions", "monitoring.coreos.com/v1"];
    let without = render("karpenter", &words);
    let of = |objects: &[Value], kind: &str| {
        let named = objects.iter().filter(|o| o["kind"] == kind);
        named.map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(of(&without, "ConfigMap"), ["karpenter-prices"]);
    assert!(of(&without, "PrometheusRule").is_empty());

    let asked = [
        "--set",
        "dashboards.enabled=true,prometheusRule.enabled=true,settings.keepSavings=true",
        "--set",
        "prometheusRule.runbookURL=https://docs/alerts.html",
        "--set",
        "prometheusRule.disabled={KarpenterDown}",
        "--set",
        "settings.costMetrics=true,controller.metrics.level=standard",
        "--set",
        "controller.metrics.drop={workqueue_*,karpenter_pods_state}",
    ];
    let with = render("karpenter", &[&words[..], &asked].concat());
    let mut maps = of(&with, "ConfigMap");
    maps.sort();
    assert_eq!(
        maps,
        [
            "karpenter-dashboard-capacity",
            "karpenter-dashboard-controller",
            "karpenter-dashboard-cost",
            "karpenter-dashboard-disruption",
            "karpenter-prices",
            "karpenter-savings",
        ]
    );
    let board = find(&with, "ConfigMap", "karpenter-dashboard-cost");
    assert_eq!(board["metadata"]["labels"]["grafana_dashboard"], "1");
    let text = board["data"]["cost.json"].as_str().unwrap();
    let board: Value = serde_json::from_str(text).unwrap();
    assert_eq!(board["title"], "Karpenter / Cost");
    assert!(text.contains("{{nodepool}}"));
    let rule = find(&with, "PrometheusRule", "karpenter");
    let groups = rule["spec"]["groups"].as_array().unwrap();
    let rules: Vec<&Value> = groups.iter().flat_map(|g| g["rules"].as_array().unwrap()).collect();
    assert!(rules.iter().all(|r| r["alert"] != "KarpenterDown"));
    let leader = rules.iter().find(|r| r["alert"] == "KarpenterNoLeader").unwrap();
    assert_eq!(leader["annotations"]["runbook_url"], "https://docs/alerts.html#karpenternoleader");
    let container = container(&with, "karpenter");
    let env = container["env"].as_array().unwrap();
    let value = |name: &str| env.iter().find(|e| e["name"] == name).map(|e| e["value"].clone());
    assert_eq!(value("METRICS_LEVEL"), Some("standard".into()));
    assert_eq!(value("METRICS_DROP"), Some("workqueue_*,karpenter_pods_state".into()));
    assert_eq!(value("METRICS_COMPAT"), None);
    assert_eq!(value("COST_METRICS"), Some("true".into()));
    assert_eq!(value("SAVINGS_CONFIG_MAP"), Some("karpenter-savings".into()));
}
