use super::mime::Ending;
use super::*;
use crate::api::taints;

fn bootstrap(custom: &str) -> Bootstrap {
    let kubelet = serde_json::json!({"maxPods": 17, "clusterDNS": ["10.100.0.10"]});
    Bootstrap {
        cluster_name: "weasel-eks".into(),
        cluster_endpoint: "https://k.example".into(),
        cluster_cidr: Some("10.100.0.0/16".into()),
        ca_bundle: "Y2E=".into(),
        labels: [
            ("karpenter.sh/nodepool", "default"),
            ("team", "x"),
            ("topology.kubernetes.io/zone", "us-east-1a"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into(),
        taints: vec![taints::new("a", Some("b"), "NoSchedule"), taints::unregistered()],
        kubelet: kubelet.as_object().unwrap().clone(),
        raid0: false,
        binds_by_itself: false,
        custom: custom.into(),
    }
}

fn text(family: AmiFamily, custom: &str) -> String {
    let encoded = render(family, &bootstrap(custom)).unwrap();
    String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap()
}

#[test]
fn al2_calls_the_bootstrap_script() {
    let text = text(AmiFamily::Al2, "");
    let parts = mime::read(&text, Ending::Required).unwrap();
    assert_eq!(parts.len(), 1);
    assert_eq!(
        parts[0].body,
        "#!/bin/bash -xe\n\
         exec > >(tee /var/log/user-data.log|logger -t user-data -s 2>/dev/console) 2>&1\n\
         /etc/eks/bootstrap.sh 'weasel-eks' --apiserver-endpoint 'https://k.example' --b64-cluster-ca 'Y2E=' \\\n\
         --dns-cluster-ip '10.100.0.10' \\\n\
         --use-max-pods false \\\n\
         --kubelet-extra-args '--node-labels=\"karpenter.sh/nodepool=default,team=x\" \
         --register-with-taints=\"a=b:NoSchedule,karpenter.sh/unregistered:NoExecute\" --max-pods=17'"
    );
}

#[test]
fn al2023_gives_nodeadm_a_configuration_that_parses() {
    let text = text(AmiFamily::Al2023, "#!/bin/bash\necho hi");
    let parts = mime::read(&text, Ending::Required).unwrap();
    assert_eq!(parts.len(), 2);
    assert_eq!(parts[0].headers, [format!("Content-Type: {}", mime::SHELL_SCRIPT)]);
    let config: Value = serde_saphyr::from_str(&parts[1].body).unwrap();
    assert_eq!(config["kind"], "NodeConfig");
    assert_eq!(config["spec"]["cluster"]["cidr"], "10.100.0.0/16");
    assert_eq!(config["spec"]["kubelet"]["config"]["maxPods"], 17);
    assert_eq!(
        config["spec"]["kubelet"]["config"]["registerWithTaints"][1],
        serde_json::json!({"effect": "NoExecute", "key": "karpenter.sh/unregistered"})
    );
    assert_eq!(
        config["spec"]["kubelet"]["flags"][0],
        "--node-labels=\"karpenter.sh/nodepool=default,team=x\""
    );
    insta::assert_snapshot!(parts[1].body);
}

#[test]
fn a_yaml_mapping_is_a_node_config_of_the_user() {
    let text = text(AmiFamily::Al2023, "spec:\n  kubelet: {}\n");
    let parts = mime::read(&text, Ending::Required).unwrap();
    assert_eq!(parts[0].headers, [format!("Content-Type: {}", mime::NODE_CONFIG)]);
}

#[test]
fn archives_of_the_user_are_merged() {
    let archive = "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"B\"\n\n--B\nContent-Type: text/cloud-config; charset=\"us-ascii\"\nX-Own: 1\n\na: b\n--B--\n";
    let al2 = mime::read(&text(AmiFamily::Al2, archive), Ending::Required).unwrap();
    assert_eq!((al2.len(), al2[0].headers.len(), al2[0].body.as_str()), (2, 2, "a: b"));
    let al2023 = mime::read(&text(AmiFamily::Al2023, archive), Ending::Required).unwrap();
    assert_eq!((al2023.len(), al2023[0].headers.len()), (2, 1));
    let broken = "Content-Type: text/plain\n\nx";
    assert!(render(AmiFamily::Al2, &bootstrap(broken)).is_err());
}

#[test]
fn bottlerocket_settings_parse_and_keep_the_users_own() {
    let custom = "[settings.ntp]\ntime-servers = [\"a\"]\n[settings.kubernetes.node-labels]\nteam = \"y\"\nown = \"z\"\n[other]\nx = 1\n";
    let table: toml::Table = text(AmiFamily::Bottlerocket, custom).parse().unwrap();
    assert!(table.get("other").is_none());
    let settings = table["settings"].as_table().unwrap();
    assert!(settings.contains_key("ntp"));
    let kubernetes = settings["kubernetes"].as_table().unwrap();
    assert_eq!(kubernetes["max-pods"].as_integer(), Some(17));
    assert_eq!(kubernetes["node-labels"]["team"].as_str(), Some("x"));
    assert_eq!(kubernetes["node-labels"]["own"].as_str(), Some("z"));
    assert_eq!(
        kubernetes["node-taints"]["karpenter.sh/unregistered"][0].as_str(),
        Some(":NoExecute")
    );
    assert!(render(AmiFamily::Bottlerocket, &bootstrap("= broken")).is_err());
}

#[test]
fn windows_calls_the_bootstrap_script() {
    let text = text(AmiFamily::Windows2022, "Write-Host hi");
    assert!(text.starts_with("<powershell>\nWrite-Host hi\n[string]$EKSBootstrapScriptFile"));
    assert!(text.ends_with(" -DNSClusterIP '10.100.0.10'\n</powershell>"));
}

#[test]
fn custom_user_data_is_left_alone() {
    assert_eq!(text(AmiFamily::Custom, "anything"), "anything");
}
