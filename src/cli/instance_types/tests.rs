use clap::Parser;

use super::*;

#[derive(Parser)]
struct Wrapper {
    #[command(flatten)]
    args: Args,
}

const TYPES: &str = r#"{"InstanceTypes": [
    {"InstanceType": "m5.large", "Hypervisor": "nitro", "SupportedUsageClasses": ["on-demand", "spot"],
     "VCpuInfo": {"DefaultVCpus": 2}, "MemoryInfo": {"SizeInMiB": 8192},
     "ProcessorInfo": {"Manufacturer": "Intel", "SupportedArchitectures": ["x86_64"]},
     "NetworkInfo": {"Ipv4AddressesPerInterface": 10, "NetworkPerformance": "Up to 10 Gigabit",
        "NetworkCards": [{"MaximumNetworkInterfaces": 3, "BaselineBandwidthInGbps": 0.75}]}},
    {"InstanceType": "m7g.large", "Hypervisor": "nitro", "SupportedUsageClasses": ["on-demand"],
     "VCpuInfo": {"DefaultVCpus": 2}, "MemoryInfo": {"SizeInMiB": 8192},
     "ProcessorInfo": {"Manufacturer": "AWS", "SupportedArchitectures": ["arm64"]},
     "NetworkInfo": {"Ipv4AddressesPerInterface": 10, "NetworkPerformance": "Up to 12.5 Gigabit",
        "NetworkCards": [{"MaximumNetworkInterfaces": 3, "BaselineBandwidthInGbps": 0.937}]}}]}"#;

fn with_files(files: &[(&str, &str)], args: &[&str]) -> Result<Vec<Arc<InstanceType>>, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut all = vec!["x".to_owned()];
    for (flag, text) in files {
        let path = folder.path().join(flag.trim_start_matches('-'));
        std::fs::write(&path, text).unwrap();
        all.extend([(*flag).to_owned(), path.to_string_lossy().into_owned()]);
    }
    all.extend(args.iter().map(|a| (*a).to_owned()));
    let args = Wrapper::parse_from(all).args;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(collect(&args)).map_err(|p| match p {
        Problem::Input(text) | Problem::Aws(text) => text,
    })
}

const FILE: &str = "--aws-instance-types";

#[test]
fn a_file_of_types_is_shown() {
    let types = with_files(&[(FILE, TYPES)], &[]).unwrap();
    insta::assert_snapshot!(show::show(show::Output::Table, &types), @r"
    NAME       ARCH   CPU  MEMORY  PODS  ALLOC-CPU  ALLOC-MEMORY  DEVICES  ON-DEMAND  SPOT
    m5.large   amd64  2    7577Mi  29    1930m      6903Mi                 0.0960     0.0960
    m7g.large  arm64  2    7518Mi  29    1930m      6844Mi                 0.0816     -
    ");
    let json: serde_json::Value =
        serde_json::from_str(&show::show(show::Output::Json, &types)).unwrap();
    assert_eq!(json[0]["labels"]["karpenter.k8s.aws/instance-family"], serde_json::json!(["m5"]));
    assert_eq!(json[0]["overhead"]["kubeReserved"]["memory"], "574Mi");
    assert_eq!(json[0]["offerings"].as_array().unwrap().len(), 6);
    let yaml: serde_json::Value =
        serde_saphyr::from_str(&show::show(show::Output::Yaml, &types)).unwrap();
    assert_eq!(yaml, json);
}

#[test]
fn pools_choose_and_classes_settle() {
    let pool = r#"{"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": "p"},
        "spec": {"template": {"spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "c"},
            "requirements": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]}}}}"#;
    let class = "apiVersion: karpenter.k8s.aws/v1\nkind: EC2NodeClass\nmetadata: {name: c}\nspec:\n  amiFamily: Bottlerocket\n  kubelet: {maxPods: 110}\n";
    let files = [(FILE, TYPES), ("--nodepool", pool), ("--nodeclass", class)];
    let types = with_files(&files, &[]).unwrap();
    assert_eq!(types.len(), 1);
    assert_eq!(types[0].allocatable().to_quantities()["memory"].0, "6012Mi");
    let other = with_files(&[(FILE, TYPES)], &["--region", "sa-east-1"]).unwrap();
    assert_eq!(other[0].offerings[0].zone(), "sa-east-1a");
    assert!(other[0].offerings[0].price > 0.12);
}

#[test]
fn bad_input_is_named() {
    let problem = |files: &[(&str, &str)]| with_files(files, &[]).unwrap_err();
    assert!(problem(&[(FILE, "{}")]).contains("describe-instance-types"));
    let class = problem(&[(FILE, TYPES), ("--nodeclass", "kind: NodePool")]);
    assert!(class.contains("expected one object of kind EC2NodeClass"), "{class}");
    let broken = problem(&[(FILE, TYPES), ("--nodepool", "a: [")]);
    assert!(broken.contains("nodepool: document 1: "), "{broken}");
}
