//! EC2NodeClass in v1 and v1beta1.

use serde_json::{Value, json};

use super::overlay::{at, clear, clear_rules, one_of, remove, rule, set};
use super::{AGE_PATH, READY_PATH, Version, column, derived};
use crate::v1;

// Karpenter's pattern as it is. Its empty alternative (`||`) lets a bare `Ti` through, which the
// controller's check refuses.
const VOLUME_SIZE: &str = r"^((?:[1-9][0-9]{0,3}|[1-4][0-9]{4}|[5][0-8][0-9]{3}|59000)Gi|(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|[6][0-3][0-9]{3}|64000)G|([1-9]||[1-5][0-7]|58)Ti|([1-9]||[1-5][0-9]|6[0-3]|64)T)$";
const FAMILIES: &[&str] =
    &["AL2", "AL2023", "Bottlerocket", "Custom", "Windows2019", "Windows2022", "Windows2025"];
const FAMILIES_V1BETA1: &[&str] =
    &["AL2", "AL2023", "Bottlerocket", "Ubuntu", "Custom", "Windows2019", "Windows2022"];
const ALIASES: &[(&str, &str)] = &[
    ("al2", "AL2"),
    ("al2023", "AL2023"),
    ("bottlerocket", "Bottlerocket"),
    ("windows2019", "Windows2019"),
    ("windows2022", "Windows2022"),
    ("windows2025", "Windows2025"),
];

const ID_EXCLUSIVE: &str =
    "'id' is mutually exclusive, cannot be set with a combination of other fields";
const NAME_EXCLUSIVE: &str =
    "'name' is mutually exclusive, cannot be set with a combination of other fields";

pub(super) fn versions() -> Vec<Version> {
    let v1 = schema();
    vec![
        Version {
            name: "v1",
            columns: json!([
                column("Ready", "string", READY_PATH, 0),
                column("Age", "date", AGE_PATH, 0),
                column("Role", "string", ".spec.role", 1),
            ]),
            schema: v1.clone(),
            storage: true,
        },
        Version { name: "v1beta1", columns: json!([]), schema: schema_v1beta1(v1), storage: false },
    ]
}

fn schema() -> Value {
    let mut schema = derived::<v1::EC2NodeClass>();
    let s = &mut schema;
    set(
        s,
        "spec",
        json!({"required": ["amiSelectorTerms", "securityGroupSelectorTerms", "subnetSelectorTerms"]}),
    );
    rule(
        s,
        "spec",
        "must specify exactly one of ['role', 'instanceProfile']",
        "has(self.role) != has(self.instanceProfile)",
    );
    for (alias, family) in ALIASES {
        let article = if family.starts_with('A') { "an" } else { "a" };
        rule(
            s,
            "spec",
            &format!(
                "if set, amiFamily must be '{family}' or 'Custom' when using {article} {family} alias"
            ),
            &format!(
                "!has(self.amiFamily) || (self.amiSelectorTerms.exists(x, has(x.alias) && x.alias.find('^[^@]+') == '{alias}') ? (self.amiFamily == 'Custom' || self.amiFamily == '{family}') : true)"
            ),
        );
    }
    rule(
        s,
        "spec",
        "must specify amiFamily if amiSelectorTerms does not contain an alias",
        "self.amiSelectorTerms.exists(x, has(x.alias)) || has(self.amiFamily)",
    );
    for field in ["role", "instanceProfile"] {
        rule(s, &format!("spec.{field}"), &format!("{field} cannot be empty"), "self != ''");
    }
    one_of(s, "spec.amiFamily", FAMILIES);
    images(s);
    networks(s);
    storage(s);
    options(s);
    tags(
        s,
        &[
            "eks:eks-cluster-name",
            "karpenter.sh/nodepool",
            "karpenter.sh/nodeclaim",
            "karpenter.k8s.aws/ec2nodeclass",
        ],
    );
    status(s);
    schema
}

fn selector_tags(s: &mut Value, terms: &str) {
    let path = format!("{terms}[].tags");
    set(s, &path, json!({"maxProperties": 20}));
    rule(
        s,
        &path,
        "empty tag keys or values aren't supported",
        "self.all(k, k != '' && self[k] != '')",
    );
}

fn images(s: &mut Value) {
    let terms = "spec.amiSelectorTerms";
    set(s, terms, json!({"minItems": 1, "maxItems": 30}));
    rule(
        s,
        terms,
        "expected at least one, got none, ['tags', 'id', 'name', 'alias', 'ssmParameter']",
        "self.all(x, has(x.tags) || has(x.id) || has(x.name) || has(x.alias) || has(x.ssmParameter))",
    );
    rule(
        s,
        terms,
        "'id' is mutually exclusive, cannot be set with a combination of other fields in amiSelectorTerms",
        "!self.exists(x, has(x.id) && (has(x.alias) || has(x.tags) || has(x.name) || has(x.owner)))",
    );
    rule(
        s,
        terms,
        "'alias' is mutually exclusive, cannot be set with a combination of other fields in amiSelectorTerms",
        "!self.exists(x, has(x.alias) && (has(x.id) || has(x.tags) || has(x.name) || has(x.owner)))",
    );
    rule(
        s,
        terms,
        "'alias' is mutually exclusive, cannot be set with a combination of other amiSelectorTerms",
        "!(self.exists(x, has(x.alias)) && self.size() != 1)",
    );
    let alias = "spec.amiSelectorTerms[].alias";
    set(s, alias, json!({"maxLength": 30}));
    rule(
        s,
        alias,
        "'alias' is improperly formatted, must match the format 'family@version'",
        "self.matches('^[a-zA-Z0-9]+@.+$')",
    );
    let names = ALIASES.iter().map(|(a, _)| format!("'{a}'")).collect::<Vec<_>>().join(", ");
    rule(
        s,
        alias,
        &format!("family is not supported, must be one of the following: {names}"),
        &format!("self.split('@')[0] in [{names}]"),
    );
    rule(
        s,
        alias,
        "windows families may only specify version 'latest'",
        "self.split('@')[0] in ['windows2019', 'windows2022', 'windows2025'] ? self.split('@')[1] == 'latest' : true",
    );
    // Without anchors, as in Karpenter's definition.
    set(s, "spec.amiSelectorTerms[].id", json!({"pattern": "ami-[0-9a-z]+"}));
    selector_tags(s, terms);
}

fn networks(s: &mut Value) {
    let subnets = "spec.subnetSelectorTerms";
    set(s, subnets, json!({"maxItems": 30}));
    rule(s, subnets, "subnetSelectorTerms cannot be empty", "self.size() != 0");
    rule(
        s,
        subnets,
        "expected at least one, got none, ['tags', 'id']",
        "self.all(x, has(x.tags) || has(x.id))",
    );
    rule(
        s,
        subnets,
        &format!("{ID_EXCLUSIVE} in a subnet selector term"),
        // Karpenter's rule: it refuses the list only when every term breaks it. A stricter one
        // would refuse objects that clusters have.
        "!self.all(x, has(x.id) && has(x.tags))",
    );
    set(s, "spec.subnetSelectorTerms[].id", json!({"pattern": "subnet-[0-9a-z]+"}));
    selector_tags(s, subnets);
    let groups = "spec.securityGroupSelectorTerms";
    set(s, groups, json!({"maxItems": 30}));
    rule(s, groups, "securityGroupSelectorTerms cannot be empty", "self.size() != 0");
    rule(
        s,
        groups,
        "expected at least one, got none, ['tags', 'id', 'name']",
        "self.all(x, has(x.tags) || has(x.id) || has(x.name))",
    );
    rule(
        s,
        groups,
        &format!("{ID_EXCLUSIVE} in a security group selector term"),
        "!self.all(x, has(x.id) && (has(x.tags) || has(x.name)))",
    );
    rule(
        s,
        groups,
        &format!("{NAME_EXCLUSIVE} in a security group selector term"),
        "!self.all(x, has(x.name) && (has(x.tags) || has(x.id)))",
    );
    set(s, "spec.securityGroupSelectorTerms[].id", json!({"pattern": "sg-[0-9a-z]+"}));
    selector_tags(s, groups);
}

fn storage(s: &mut Value) {
    let devices = "spec.blockDeviceMappings";
    set(s, devices, json!({"maxItems": 50}));
    rule(
        s,
        devices,
        "must have only one blockDeviceMappings with rootVolume",
        "self.filter(x, has(x.rootVolume) ? x.rootVolume == true : false).size() <= 1",
    );
    let ebs = "spec.blockDeviceMappings[].ebs";
    rule(
        s,
        ebs,
        "snapshotID or volumeSize must be defined",
        "has(self.snapshotID) || has(self.volumeSize)",
    );
    rule(
        s,
        ebs,
        "snapshotID must be set when volumeInitializationRate is set",
        "!has(self.volumeInitializationRate) || (has(self.snapshotID) && self.snapshotID != '')",
    );
    let field = |name: &str| format!("{ebs}.{name}");
    set(
        s,
        &field("volumeInitializationRate"),
        json!({"format": "int32", "minimum": 100, "maximum": 300}),
    );
    set(s, &field("volumeSize"), json!({"pattern": VOLUME_SIZE}));
    one_of(s, &field("volumeType"), &["standard", "io1", "io2", "gp2", "sc1", "st1", "gp3"]);
    one_of(s, "spec.instanceStorePolicy", &["RAID0"]);
}

fn options(s: &mut Value) {
    let reservations = "spec.capacityReservationSelectorTerms";
    set(s, reservations, json!({"maxItems": 30}));
    rule(
        s,
        reservations,
        "expected at least one, got none, ['tags', 'id', 'instanceMatchCriteria']",
        "self.all(x, has(x.tags) || has(x.id) || has(x.instanceMatchCriteria))",
    );
    rule(
        s,
        reservations,
        "'id' is mutually exclusive, cannot be set along with other fields in a capacity reservation selector term",
        "!self.all(x, has(x.id) && (has(x.tags) || has(x.ownerID) || has(x.instanceMatchCriteria)))",
    );
    let field = |name: &str| format!("{reservations}[].{name}");
    set(s, &field("id"), json!({"pattern": "^cr-[0-9a-z]+$"}));
    one_of(s, &field("instanceMatchCriteria"), &["open", "targeted"]);
    set(s, &field("ownerID"), json!({"pattern": "^[0-9]{12}$"}));
    selector_tags(s, reservations);
    rule(
        s,
        "spec.connectionTracking",
        "at least one of tcpEstablishedTimeout, udpStreamTimeout, or udpTimeout must be set",
        "has(self.tcpEstablishedTimeout) || has(self.udpStreamTimeout) || has(self.udpTimeout)",
    );
    for (name, min, max) in [
        // The limits of EC2's ConnectionTrackingSpecification.
        ("tcpEstablishedTimeout", 60, 432_000),
        ("udpStreamTimeout", 60, 180),
        ("udpTimeout", 30, 60),
    ] {
        let path = format!("spec.connectionTracking.{name}");
        set(s, &path, json!({"format": "int32", "minimum": min, "maximum": max}));
    }
    one_of(s, "spec.cpuOptions.nestedVirtualization", &["enabled", "disabled"]);
    set(s, "spec.enclaveOptions", json!({"required": ["enabled"]}));
    set(s, "spec.ipPrefixCount", json!({"format": "int32", "minimum": 0}));
    metadata_options(s, 1);
    let interfaces = "spec.networkInterfaces";
    set(s, interfaces, json!({"maxItems": 150}));
    set(
        s,
        "spec.networkInterfaces[]",
        json!({"required": ["deviceIndex", "interfaceType", "networkCardIndex"]}),
    );
    for name in ["deviceIndex", "networkCardIndex"] {
        set(s, &format!("{interfaces}[].{name}"), json!({"format": "int32", "minimum": 0}));
    }
    one_of(s, "spec.networkInterfaces[].interfaceType", &["interface", "efa-only"]);
    rule(
        s,
        interfaces,
        "networkInterfaces must include a primary interface with interfaceType='interface'",
        "self.size() == 0 || self.exists(x, x.networkCardIndex == 0 && x.deviceIndex == 0 && x.interfaceType == 'interface')",
    );
    rule(
        s,
        interfaces,
        "networkInterfaces must not have duplicate networkCardIndex and deviceIndex pairs, and can have at most one efa device per network card",
        "self.all(x, self.filter(y, x.networkCardIndex == y.networkCardIndex && (x.deviceIndex == y.deviceIndex || (x.interfaceType == 'efa-only' && y.interfaceType == 'efa-only'))).size() == 1)",
    );
    let group = "spec.placementGroupSelector";
    rule(
        s,
        group,
        "expected at least one, got none, ['name', 'id']",
        "has(self.name) || has(self.id)",
    );
    rule(s, group, "'name' and 'id' are mutually exclusive", "!(has(self.name) && has(self.id))");
    set(s, "spec.placementGroupSelector.id", json!({"pattern": "^pg-[0-9a-z]+$"}));
    set(s, "spec.placementGroupSelector.name", json!({"minLength": 1}));
}

fn metadata_options(s: &mut Value, hops: i32) {
    let path = |name: &str| format!("spec.metadataOptions.{name}");
    set(
        s,
        "spec.metadataOptions",
        json!({"default": {"httpEndpoint": "enabled", "httpProtocolIPv6": "disabled",
            "httpPutResponseHopLimit": hops, "httpTokens": "required"}}),
    );
    one_of(s, &path("httpEndpoint"), &["enabled", "disabled"]);
    set(s, &path("httpEndpoint"), json!({"default": "enabled"}));
    one_of(s, &path("httpProtocolIPv6"), &["enabled", "disabled"]);
    set(s, &path("httpProtocolIPv6"), json!({"default": "disabled"}));
    set(
        s,
        &path("httpPutResponseHopLimit"),
        json!({"default": hops, "format": "int64", "minimum": 1, "maximum": 64}),
    );
    one_of(s, &path("httpTokens"), &["required", "optional"]);
    set(s, &path("httpTokens"), json!({"default": "required"}));
}

fn tags(s: &mut Value, restricted: &[&str]) {
    let path = "spec.tags";
    rule(s, path, "empty tag keys aren't supported", "self.all(k, k != '')");
    rule(
        s,
        path,
        "tag contains a restricted tag matching kubernetes.io/cluster/",
        "self.all(k, !k.startsWith('kubernetes.io/cluster'))",
    );
    for key in restricted {
        rule(
            s,
            path,
            &format!("tag contains a restricted tag matching {key}"),
            &format!("self.all(k, k != '{key}')"),
        );
    }
}

fn status(s: &mut Value) {
    set(s, "status.amis[]", json!({"required": ["id", "requirements"]}));
    set(s, "status.amis[].requirements[]", json!({"required": ["key", "operator"]}));
    *at(s, "status.amis[].requirements[].operator") =
        json!({"type": "string", "description": "How the label relates to the values."});
    set(s, "status.amis[].requirements[].values", json!({"x-kubernetes-list-type": "atomic"}));
    set(s, "status.securityGroups[]", json!({"required": ["id"]}));
    set(s, "status.subnets[]", json!({"required": ["id", "zone"]}));
    let reservations = "status.capacityReservations[]";
    set(
        s,
        reservations,
        json!({"required": ["availabilityZone", "id", "instanceMatchCriteria", "instanceType", "ownerID"]}),
    );
    let field = |name: &str| format!("{reservations}.{name}");
    set(s, &field("id"), json!({"pattern": "^cr-[0-9a-z]+$"}));
    set(s, &field("ownerID"), json!({"pattern": "^[0-9]{12}$"}));
    one_of(s, &field("instanceMatchCriteria"), &["open", "targeted"]);
    one_of(s, &field("reservationType"), &["default", "capacity-block"]);
    set(s, &field("reservationType"), json!({"default": "default"}));
    one_of(s, &field("state"), &["active", "expiring"]);
    set(s, &field("state"), json!({"default": "active"}));
}

fn schema_v1beta1(mut schema: Value) -> Value {
    let s = &mut schema;
    remove(
        s,
        "spec",
        &[
            "capacityReservationSelectorTerms",
            "connectionTracking",
            "cpuOptions",
            "enclaveOptions",
            "ipPrefixCount",
            "kubelet",
            "networkInterfaces",
            "placementGroupSelector",
        ],
    );
    set(
        s,
        "spec",
        json!({"required": ["amiFamily", "securityGroupSelectorTerms", "subnetSelectorTerms"]}),
    );
    clear_rules(s, "spec");
    rule(
        s,
        "spec",
        "amiSelectorTerms is required when amiFamily == 'Custom'",
        "self.amiFamily == 'Custom' ? self.amiSelectorTerms.size() != 0 : true",
    );
    rule(
        s,
        "spec",
        "must specify exactly one of ['role', 'instanceProfile']",
        "(has(self.role) && !has(self.instanceProfile)) || (!has(self.role) && has(self.instanceProfile))",
    );
    rule(
        s,
        "spec",
        "changing from 'instanceProfile' to 'role' is not supported. You must delete and recreate this node class if you want to change this.",
        "(has(oldSelf.role) && has(self.role)) || (has(oldSelf.instanceProfile) && has(self.instanceProfile))",
    );
    rule(s, "spec.role", "immutable field changed", "self == oldSelf");
    one_of(s, "spec.amiFamily", FAMILIES_V1BETA1);
    let terms = "spec.amiSelectorTerms";
    clear(s, terms, &["minItems"]);
    remove(s, "spec.amiSelectorTerms[]", &["alias", "ssmParameter"]);
    clear_rules(s, terms);
    rule(
        s,
        terms,
        "expected at least one, got none, ['tags', 'id', 'name']",
        "self.all(x, has(x.tags) || has(x.id) || has(x.name))",
    );
    rule(
        s,
        terms,
        "'id' is mutually exclusive, cannot be set with a combination of other fields in amiSelectorTerms",
        "!self.all(x, has(x.id) && (has(x.tags) || has(x.name) || has(x.owner)))",
    );
    let ebs = "spec.blockDeviceMappings[].ebs";
    remove(s, ebs, &["volumeInitializationRate"]);
    clear_rules(s, ebs);
    rule(
        s,
        ebs,
        "snapshotID or volumeSize must be defined",
        "has(self.snapshotID) || has(self.volumeSize)",
    );
    metadata_options(s, 2);
    clear_rules(s, "spec.tags");
    tags(
        s,
        &[
            "karpenter.sh/nodepool",
            "karpenter.sh/managed-by",
            "karpenter.sh/nodeclaim",
            "karpenter.k8s.aws/ec2nodeclass",
        ],
    );
    for (path, owner, exclusive) in [
        ("spec.subnetSelectorTerms", "in a subnet selector term", "in subnetSelectorTerms"),
        (
            "spec.securityGroupSelectorTerms",
            "in a security group selector term",
            "in securityGroupSelectorTerms",
        ),
    ] {
        let rules = at(s, path)["x-kubernetes-validations"].as_array_mut();
        for rule in rules.into_iter().flatten() {
            let message = rule["message"].as_str().unwrap_or_default().replace(owner, exclusive);
            rule["message"] = json!(message);
        }
    }
    schema
}
