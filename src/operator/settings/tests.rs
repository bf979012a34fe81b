use super::*;

fn parse(args: &[&str], env: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    Settings::parse(&args, |name| {
        env.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned())
    })
}

fn error(args: &[&str], env: &[(&str, &str)]) -> String {
    parse(args, env).unwrap_err().to_string()
}

const NAMED: (&str, &str) = ("CLUSTER_NAME", "weasel-eks");

#[test]
fn defaults_are_karpenters() {
    let settings = parse(&[], &[NAMED]).unwrap();
    assert_eq!((settings.metrics_port, settings.health_probe_port), (8080, 8081));
    assert_eq!(settings.webhook_port, 8443);
    assert_eq!(settings.leader_election_name, "karpenter-leader-election");
    assert_eq!((settings.kube_client_qps, settings.kube_client_burst), (200, 300));
    assert_eq!(settings.batch_max_duration, Duration::from_secs(10));
    assert_eq!(settings.batch_idle_duration, Duration::from_secs(1));
    assert_eq!(settings.memory_limit, None);
    assert!((settings.vm_memory_overhead_percent - 0.075).abs() < f64::EPSILON);
    assert!(settings.respect_preferences && !settings.best_effort_min_values);
    assert!(settings.ignore_dra_requests);
    assert_eq!(settings.gates, FeatureGates::default());
}

#[test]
fn flags_win_over_the_environment() {
    let env = [("CLUSTER_NAME", "e"), ("BATCH_IDLE_DURATION", "3s"), ("RESERVED_ENIS", "x")];
    let settings = parse(&["-cluster-name=f", "--disable-dry-run"], &env).unwrap();
    assert_eq!(settings.cluster_name, "f");
    assert!(settings.disable_dry_run);
    assert_eq!(settings.batch_idle_duration, Duration::from_secs(3));
    assert_eq!(settings.reserved_enis, 0);
    assert_eq!(parse(&["--cluster-name", "g"], &env).unwrap().cluster_name, "g");
}

#[test]
fn environment_values_that_cannot_be_read_are_ignored() {
    let env = [
        NAMED,
        ("METRICS_PORT", "0x10"),
        ("ISOLATED_VPC", "yes"),
        ("AMI_REFRESH_INTERVAL", ""),
        ("VM_MEMORY_OVERHEAD_PERCENT", "much"),
        ("EKS_CONTROL_PLANE", "T"),
    ];
    let settings = parse(&[], &env).unwrap();
    assert_eq!(settings.metrics_port, 8080);
    assert!(!settings.isolated_vpc && settings.eks_control_plane);
    assert_eq!(settings.ami_refresh_interval, Duration::from_secs(60));
}

#[test]
fn an_empty_text_counts() {
    assert_eq!(parse(&[], &[NAMED, ("LOG_LEVEL", "")]).unwrap().log_level, "");
    assert_eq!(parse(&[], &[NAMED, ("FEATURE_GATES", "")]).unwrap().gates, FeatureGates::default());
    assert!(error(&[], &[NAMED, ("PREFERENCE_POLICY", "")]).contains("PREFERENCE_POLICY \"\""));
}

#[test]
fn flags_have_gos_syntax() {
    let with = |args: &[&str]| parse(args, &[NAMED]);
    assert_eq!(with(&["--metrics-port=0x1F90"]).unwrap().metrics_port, 8080);
    assert_eq!(with(&["-metrics-port", "1_000"]).unwrap().metrics_port, 1000);
    assert!(with(&["--isolated-vpc"]).unwrap().isolated_vpc);
    assert!(!with(&["--isolated-vpc=false"]).unwrap().isolated_vpc);
    // The first argument that is no flag ends them; what follows is ignored.
    assert!(!with(&["now", "--isolated-vpc"]).unwrap().isolated_vpc);
    assert!(!with(&["--", "--isolated-vpc"]).unwrap().isolated_vpc);
    assert!(!with(&["-", "--nonsense"]).unwrap().isolated_vpc);
    assert_eq!(error(&["---x"], &[NAMED]), "parsing flags, bad flag syntax: ---x");
    assert_eq!(
        error(&["--isolated-vpc=1"], &[NAMED]),
        r#"parsing flags, invalid value "1" for flag -isolated-vpc: "1" is not a valid value, must be true or false"#
    );
    assert_eq!(
        error(&["--cluster-name"], &[]),
        "parsing flags, flag needs an argument: -cluster-name"
    );
}

#[test]
fn nonsense_is_named() {
    assert_eq!(error(&[], &[]), "validating options, missing field, cluster-name");
    assert!(error(&["--log-level=warn"], &[NAMED]).contains("invalid LOG_LEVEL \"warn\""));
    assert!(error(&["--min-values-policy=strict"], &[NAMED]).contains("MIN_VALUES_POLICY"));
    assert!(error(&["--metrics-port=70000"], &[NAMED]).contains("METRICS_PORT 70000"));
    assert!(error(&["--feature-gates=A"], &[NAMED]).contains("malformed pair"));
    assert!(error(&["--feature-gates=A=b"], &[NAMED]).contains("invalid value of A"));
}

#[test]
fn everything_wrong_is_reported_at_once() {
    let args = [
        "--cluster-endpoint=nowhere",
        "--vm-memory-overhead-percent=-1",
        "--reserved-enis=-1",
        "--ami-refresh-interval=1s",
        "--subnet-refresh-interval=59s",
        "--security-group-refresh-interval=59s",
    ];
    assert_eq!(
        error(&args, &[]),
        "validating options, cluster endpoint URL is not valid (cluster-endpoint=nowhere); \
         vm-memory-overhead-percent cannot be negative; reserved-enis cannot be negative; \
         missing field, cluster-name; ami-refresh-interval must be at least 1m; \
         subnet-refresh-interval must be at least 1m; \
         security-group-refresh-interval must be at least 1m"
    );
    for share in ["1", "7.5", "NaN", "inf"] {
        let error = error(&["--vm-memory-overhead-percent", share], &[NAMED]);
        assert!(
            error.ends_with("vm-memory-overhead-percent must be less than 1, as it is a share")
        );
    }
    for good in ["https://a.example", "https://[::1]:6443", "http://127.0.0.1:8080/x"] {
        assert!(parse(&["--cluster-endpoint", good], &[NAMED]).is_ok(), "{good}");
    }
    for bad in ["https://", "a.example", "a.example:443", "/x"] {
        assert!(parse(&["--cluster-endpoint", bad], &[NAMED]).is_err(), "{bad}");
    }
}

#[test]
fn gates_left_out_keep_their_defaults() {
    let env = [NAMED, ("FEATURE_GATES", " NodeRepair = true ,,Drift=true,")];
    let gates = parse(&[], &env).unwrap().gates;
    assert!(gates.node_repair && gates.reserved_capacity && !gates.node_overlay);
}

#[test]
fn the_webhook_can_be_off() {
    assert_eq!(parse(&[], &[NAMED, ("DISABLE_WEBHOOK", "true")]).unwrap().webhook_port, 0);
    assert_eq!(parse(&["--webhook-port=0"], &[NAMED]).unwrap().webhook_port, 0);
}

#[test]
fn workers_grow_with_the_cpu_request() {
    let workers =
        |cpu: &str| parse(&[], &[NAMED, ("CPU_REQUESTS", cpu)]).unwrap().workers(10, 1000);
    assert_eq!(workers("-5"), 10);
    assert_eq!(workers("1000"), 10);
    assert_eq!(workers("1001"), 26);
    assert_eq!(workers("60000"), 1000);
    assert_eq!(workers("900000"), 1000);
}

#[test]
fn the_usage_names_every_flag_and_variable() {
    let text = usage();
    for name in ["--cluster-name (CLUSTER_NAME)", "--feature-gates (FEATURE_GATES)"] {
        assert!(text.contains(name), "{name}");
    }
}

#[test]
fn the_gates_of_1_15_are_known() {
    let all = "TerminateFirstDrift=true,TerminateFirstRepair=true,PodDeletionCostManagement=true";
    let settings = parse(&[], &[NAMED, ("FEATURE_GATES", all)]).unwrap();
    let gates = settings.gates;
    assert!(gates.terminate_first_drift && gates.terminate_first_repair);
    assert!(gates.pod_deletion_cost_management && settings.unknown.is_empty());
    let aws = [NAMED, ("AWS_FEATURE_GATES", "DRAEFA=true,RebootForRepair=true")];
    let settings = parse(&["--legacy-node-repair"], &aws).unwrap();
    assert!(settings.aws_gates.dra_efa && settings.aws_gates.reboot_for_repair);
    assert!(settings.legacy_node_repair && !settings.aws_gates.dra_nvidia_gpu);
    // Devices that the provider makes known are of no use to pods whose claims are ignored.
    assert!(!settings.ignore_dra_requests);
}

#[test]
fn names_that_nobody_knows_are_named_and_not_refused() {
    let env = [NAMED, ("FEATURE_GATES", "Drift=true,NodeRepairs=true")];
    let args = ["--kubeconfig", "x", "--batch-idle-durations=3s", "--isolated-vpc"];
    let settings = parse(&args, &env).unwrap();
    assert_eq!(
        settings.unknown,
        [
            "flag --kubeconfig is not known and has no effect",
            "flag --batch-idle-durations is not known and has no effect, did you mean --batch-idle-duration?",
            "feature gate NodeRepairs is not known and has no effect",
        ]
    );
    assert!(settings.isolated_vpc);
}

/// The page is written by `UPDATE_DOCS=1 cargo test the_reference_page`.
#[test]
fn the_reference_page_has_the_table_of_settings() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/reference/settings.md");
    let text = std::fs::read_to_string(page).unwrap();
    let begin = text.find("| flag |").unwrap();
    let end = begin + text[begin..].find("\n\n").unwrap() + 1;
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let new = format!("{}{}{}", &text[..begin], reference(), &text[end..]);
        std::fs::write(page, new).unwrap();
        return;
    }
    assert_eq!(&text[begin..end], reference());
}

#[test]
fn every_chart_value_of_a_setting_is_in_the_schema_and_in_the_template() {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/karpenter/");
    let read = |name: &str| std::fs::read_to_string(format!("{chart}{name}")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let template = read("templates/deployment.yaml");
    for (variable, value) in chart_values() {
        let found = value.split('.').fold(&schema, |at, name| &at["properties"][name]);
        assert!(found.is_object(), "{value} is not in the schema");
        assert!(template.contains(&variable), "{variable} is not in the template");
    }
}
