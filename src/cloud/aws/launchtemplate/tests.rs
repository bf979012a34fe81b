use serde_json::{Value, json};

use super::*;
use crate::api::annotations;
use crate::api::v1::NodeClaim;
use crate::cloud::aws::placementgroup::PlacementGroup;
use crate::scheduling::instance_type::Offering;
use crate::scheduling::requirements::Requirement;
use crate::scheduling::resources::Name;

fn cluster() -> Cluster {
    Cluster {
        name: "weasel-eks".into(),
        region: "us-east-1".into(),
        endpoint: "https://k.example".into(),
        cidr: Some("10.100.0.0/16".into()),
        ca_bundle: "Y2E=".into(),
        dns_ip: Some("10.100.0.10".into()),
        reserved_capacity: true,
        kubelet_expressions: false,
    }
}

fn class(spec: Value) -> EC2NodeClass {
    let mut all = json!({"amiFamily": "AL2023", "role": "r"});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let mut class = EC2NodeClass::new("c", serde_json::from_value(all).unwrap());
    class.status = Some(
        serde_json::from_value(json!({
            "instanceProfile": "profile-1",
            "securityGroups": [{"id": "sg-1"}, {"id": "sg-2"}],
            "subnets": [{"id": "subnet-1", "zone": "a"}],
            "amis": [
                {"id": "ami-arm", "requirements": [{"key": labels::ARCH, "operator": "In", "values": ["arm64"]}]},
                {"id": "ami-amd", "requirements": [{"key": labels::ARCH, "operator": "In", "values": ["amd64"]}]},
            ]}))
        .unwrap(),
    );
    class
}

fn claim(spec: Value) -> NodeClaim {
    serde_json::from_value(
        json!({"metadata": {"labels": {"karpenter.sh/nodepool": "p"}}, "spec": spec}),
    )
    .unwrap()
}

fn kind(name: &str, arch: &str, pods: i64) -> Arc<InstanceType> {
    Arc::new(InstanceType {
        name: name.into(),
        requirements: [Requirement::is(labels::ARCH, arch)].into_iter().collect(),
        capacity: [(Name::Pods, pods), (Name::from(EFA), 2)].into_iter().collect(),
        ..InstanceType::default()
    })
}

struct Case {
    class: EC2NodeClass,
    claim: NodeClaim,
    types: Vec<Arc<InstanceType>>,
    capacity_type: &'static str,
    placement: Option<PlacementGroup>,
}

impl Case {
    fn new(spec: Value) -> Self {
        Self {
            class: class(spec),
            claim: claim(json!({})),
            types: vec![kind("m5.large", "amd64", 29)],
            capacity_type: "on-demand",
            placement: None,
        }
    }

    fn specs_of(&self, cluster: &Cluster) -> Result<Vec<Spec>, TemplateError> {
        specs(
            cluster,
            &Launch {
                class: &self.class,
                claim: &self.claim,
                types: &self.types,
                capacity_type: self.capacity_type,
                tenancy: "default",
                tags: &[("team".to_owned(), "x".to_owned())].into(),
                placement: self.placement.as_ref(),
            },
        )
    }

    fn specs(&self) -> Vec<Spec> {
        self.specs_of(&cluster()).unwrap()
    }

    fn only(&self) -> Spec {
        let mut list = self.specs();
        assert_eq!(list.len(), 1);
        list.remove(0)
    }
}

#[test]
fn types_are_split_by_image_and_pod_density() {
    let mut case = Case::new(json!({}));
    case.types = vec![
        kind("m5.large", "amd64", 29),
        kind("m6g.large", "arm64", 29),
        kind("c5.large", "amd64", 29),
        kind("m5.xlarge", "amd64", 58),
        kind("odd.large", "riscv", 29),
    ];
    let list: Vec<(String, Vec<String>)> = case
        .specs()
        .into_iter()
        .map(|s| (s.image_id, s.instance_types.iter().map(|t| t.name.to_string()).collect()))
        .collect();
    let entry = |ami: &str, types: &[&str]| {
        (ami.to_owned(), types.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(
        list,
        [
            entry("ami-arm", &["m6g.large"]),
            entry("ami-amd", &["m5.large", "c5.large"]),
            entry("ami-amd", &["m5.xlarge"]),
        ]
    );
}

#[test]
fn names_follow_what_the_template_says() {
    let name = |spec: Value| Case::new(spec).only().name;
    let base = name(json!({}));
    assert!(base.starts_with(PREFIX));
    assert!(base[PREFIX.len()..].parse::<u64>().is_ok());
    assert_eq!(base, name(json!({})));
    // Selectors count only through what they find.
    assert_eq!(base, name(json!({"amiSelectorTerms": [{"id": "ami-amd"}]})));
    for other in [
        json!({"userData": "a: b"}),
        json!({"detailedMonitoring": true}),
        json!({"instanceStorePolicy": "RAID0"}),
        json!({"kubelet": {"maxPods": 5}}),
        json!({"cpuOptions": {"nestedVirtualization": "enabled"}}),
        json!({"enclaveOptions": {"enabled": true}}),
    ] {
        assert_ne!(base, name(other.clone()), "{other}");
    }
    let mut tainted = Case::new(json!({}));
    tainted.claim = claim(json!({"taints": [{"key": "a", "effect": "NoSchedule"}]}));
    assert_ne!(base, tainted.only().name);
    let mut spot = Case::new(json!({}));
    spot.capacity_type = "spot";
    assert_ne!(base, spot.only().name);
}

#[test]
fn enclaves_are_turned_on_by_the_class_or_by_what_pods_ask_for() {
    let enabled = |case: Case| case.only().data.enclave_options().unwrap().enabled();
    let with = |spec: Value| enabled(Case::new(json!({"enclaveOptions": spec})));
    assert_eq!(with(json!({"enabled": true})), Some(true));
    assert_eq!(with(json!({"enabled": false})), Some(false));
    let mut case = Case::new(json!({"enclaveOptions": {"enabled": false}}));
    case.claim = claim(json!({"resources": {"requests": {NITRO_SANDBOX: "1"}}}));
    assert_eq!(enabled(case), Some(true));
}

#[test]
fn what_is_missing_is_reported() {
    let mut case = Case::new(json!({}));
    let text = |case: &Case| case.specs_of(&cluster()).unwrap_err().to_string();
    case.types = vec![kind("odd.large", "riscv", 1)];
    assert_eq!(text(&case), "no instance types satisfy requirements of amis [ami-arm ami-amd]");
    case.class.status.as_mut().unwrap().amis.clear();
    assert_eq!(text(&case), "no amis exist given constraints");
    case.class.status.as_mut().unwrap().security_groups.clear();
    assert_eq!(text(&case), "no security groups are present in the status");
    let case = Case::new(json!({}));
    let without_cidr = Cluster { cidr: None, ..cluster() };
    let error = case.specs_of(&without_cidr).unwrap_err().to_string();
    assert!(error.contains("resolving cluster CIDR"), "{error}");
}

#[test]
fn plain_launches_stay_out_of_reservations() {
    let spec = Case::new(json!({})).only();
    let data = &spec.data;
    let reservation = data.capacity_reservation_specification().unwrap();
    assert_eq!(reservation.capacity_reservation_preference().unwrap().as_str(), "none");
    assert!(data.instance_market_options().is_none());
    let off = Cluster { reserved_capacity: false, ..cluster() };
    let list = Case::new(json!({})).specs_of(&off).unwrap();
    assert!(list[0].data.capacity_reservation_specification().is_none());
    assert_eq!(data.placement().unwrap().tenancy().unwrap().as_str(), "default");
    assert_eq!(data.enclave_options().unwrap().enabled(), Some(false));
    assert_eq!(data.monitoring().unwrap().enabled(), Some(false));
    assert_eq!(data.iam_instance_profile().unwrap().name(), Some("profile-1"));
    assert!(data.security_group_ids().is_empty());
    let kinds: Vec<&str> =
        data.tag_specifications().iter().map(|t| t.resource_type().unwrap().as_str()).collect();
    assert_eq!(kinds, ["network-interface"]);
    let options = data.metadata_options().unwrap();
    assert_eq!(options.http_endpoint().unwrap().as_str(), "disabled");
    assert_eq!(options.http_put_response_hop_limit(), Some(2));
    assert_eq!(options.instance_metadata_tags().unwrap().as_str(), "disabled");
    let mut spot = Case::new(json!({}));
    spot.capacity_type = "spot";
    assert_eq!(spot.only().data.tag_specifications().len(), 2);
}

#[test]
fn reserved_launches_have_a_template_a_reservation() {
    let offering = |id: &str, kind: &str, interruptible: &str| Offering {
        requirements: [
            Requirement::is(labels::CAPACITY_TYPE, "reserved"),
            Requirement::is(labels::ZONE, "a"),
            Requirement::is(labels::CAPACITY_RESERVATION_ID, id),
            Requirement::is(labels::CAPACITY_RESERVATION_TYPE, kind),
            Requirement::is(labels::CAPACITY_RESERVATION_INTERRUPTIBLE, interruptible),
        ]
        .into_iter()
        .collect(),
        available: true,
        ..Offering::default()
    };
    let mut own = (*kind("m5.large", "amd64", 29)).clone();
    own.offerings = vec![
        offering("cr-1", "default", "false"),
        offering("cr-2", "capacity-block", "false"),
        offering("cr-3", "default", "true"),
    ];
    let mut case = Case::new(json!({}));
    case.types = vec![Arc::new(own)];
    case.capacity_type = "reserved";
    let seen: Vec<(String, String)> = case
        .specs()
        .iter()
        .map(|spec| {
            let data = &spec.data;
            let reservation = data.capacity_reservation_specification().unwrap();
            let preference = reservation.capacity_reservation_preference().unwrap();
            assert_eq!(preference.as_str(), "capacity-reservations-only");
            let target = reservation.capacity_reservation_target().unwrap();
            let market = data.instance_market_options().and_then(|m| m.market_type());
            (
                target.capacity_reservation_id().unwrap().to_owned(),
                market.map(|m| m.as_str().to_owned()).unwrap_or_default(),
            )
        })
        .collect();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(
        seen,
        [
            pair("cr-1", ""),
            pair("cr-2", "capacity-block"),
            pair("cr-3", "interruptible-capacity-reservation"),
        ]
    );
}

#[test]
fn partitions_are_asked_for_by_the_lowest_text() {
    let mut case = Case::new(json!({}));
    case.placement = Some(PlacementGroup {
        id: "pg-1".into(),
        strategy: "partition".into(),
        ..PlacementGroup::default()
    });
    case.claim = claim(json!({"requirements": [{"key": labels::PLACEMENT_GROUP_PARTITION,
        "operator": "In", "values": ["2", "10", "3"]}]}));
    let placement = |case: &Case| {
        let spec = case.only();
        let placement = spec.data.placement().unwrap();
        (placement.group_id().map(str::to_owned), placement.partition_number())
    };
    assert_eq!(placement(&case), (Some("pg-1".to_owned()), Some(10)));
    case.claim = claim(json!({}));
    assert_eq!(placement(&case), (Some("pg-1".to_owned()), None));
    case.placement = None;
    assert_eq!(placement(&case), (None, None));
}

#[test]
fn extended_resources_shape_the_template() {
    let mut case = Case::new(json!({}));
    case.claim = claim(json!({"resources": {"requests": {EFA: "1", NITRO_SANDBOX: "1"}}}));
    let spec = case.only();
    assert_eq!(spec.data.network_interfaces().len(), 2);
    assert_eq!(spec.data.enclave_options().unwrap().enabled(), Some(true));
}

#[test]
fn isolated_regions_know_no_ipv6_metadata() {
    let spec = json!({"metadataOptions": {"httpProtocolIPv6": "enabled"}});
    let ipv6 = |region: &str| {
        let cluster = Cluster { region: region.to_owned(), ..cluster() };
        let list = Case::new(spec.clone()).specs_of(&cluster).unwrap();
        let options = list[0].data.metadata_options().unwrap().clone();
        options.http_protocol_ipv6().map(|v| v.as_str().to_owned())
    };
    assert_eq!(ipv6("us-east-1").as_deref(), Some("enabled"));
    assert_eq!(ipv6("us-iso-east-1"), None);
}

#[test]
fn devices_of_the_network_driver_bring_their_interfaces() {
    let efa = |drivers: &str| {
        let mut case = Case::new(json!({}));
        let marks = [(annotations::REQUESTED_DRA_DRIVERS.to_owned(), drivers.to_owned())];
        case.claim.metadata.annotations = Some(marks.into());
        let data = case.only().data;
        let all = data.network_interfaces().iter();
        all.filter(|i| i.interface_type() == Some("efa")).count()
    };
    assert_eq!(efa("gpu.nvidia.com"), 0);
    assert_eq!(efa("gpu.nvidia.com, dra.net"), 2);
}
