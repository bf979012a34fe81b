//! Constraints that several kinds share: requirements, labels, class references, selectors.

use serde_json::{Value, json};

use super::overlay::{at, clear, clear_rules, one_of, rule, set};
use crate::labels;
use crate::schema::{LABEL_VALUE, QUALIFIED_NAME};

/// Operators of v1.
const OPERATORS: &[&str] = &["Gte", "Lte", "In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
/// Operators of v1beta1.
const OPERATORS_V1BETA1: &[&str] = &["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];

/// AWS labels that users may name in NodePools and NodeClaims.
fn aws_labels() -> Vec<&'static str> {
    let own = labels::WELL_KNOWN_AWS.iter().copied();
    own.filter(|l| l.starts_with("karpenter.k8s.aws/")).chain([labels::EC2NODECLASS]).collect()
}

/// AWS labels that NodeOverlays may name: those of the instance type itself.
fn overlay_labels() -> Vec<&'static str> {
    aws_labels()
        .into_iter()
        .filter(|l| {
            !["instance-tenancy", "capacity-reservation", "placement-group"]
                .iter()
                .any(|part| l.contains(part))
        })
        .collect()
}

/// Who names labels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Namer {
    Pool,
    Claim,
    Overlay,
}

/// `variable` must not be a label that Karpenter or the cloud set.
fn restricted(variable: &str, namer: Namer) -> Vec<(String, String)> {
    let list = |keys: &[&str]| {
        keys.iter().map(|k| format!("{k:?}")).collect::<Vec<_>>().join(", ").replace('"', "'")
    };
    let aws = if namer == Namer::Overlay { overlay_labels() } else { aws_labels() };
    let outside = |domain: &str| format!("!{variable}.find('^([^/]+)').endsWith('{domain}')");
    let mut rules = vec![(
        "label domain \"karpenter.sh\" is restricted".to_owned(),
        format!(
            "{variable} in ['karpenter.sh/capacity-type', 'karpenter.sh/nodepool'] || {}",
            outside("karpenter.sh")
        ),
    )];
    // NodeClaims carry the label, and overlays select pools by it; only NodePools may not set it.
    if namer == Namer::Pool {
        rules.push((
            "label \"karpenter.sh/nodepool\" is restricted".to_owned(),
            format!("{variable} != 'karpenter.sh/nodepool'"),
        ));
    }
    rules.push((
        "label \"kubernetes.io/hostname\" is restricted".to_owned(),
        format!("{variable} != 'kubernetes.io/hostname'"),
    ));
    rules.push((
        "label domain \"karpenter.k8s.aws\" is restricted".to_owned(),
        format!("{variable} in [{}] || {}", list(&aws), outside("karpenter.k8s.aws")),
    ));
    rules
}

/// Labels of a pool's template.
pub(super) fn template_labels(schema: &mut Value, path: &str) {
    set(schema, path, json!({"maxProperties": 100, "x-kubernetes-map-type": "atomic"}));
    set(schema, &format!("{path}{{}}"), json!({"maxLength": 63, "pattern": LABEL_VALUE}));
    for (message, expression) in restricted("x", Namer::Pool) {
        rule(schema, path, &message, &format!("self.all(x, {expression})"));
    }
}

/// A list of requirements in v1.
pub(super) fn requirements(schema: &mut Value, path: &str, namer: Namer) {
    let items = format!("{path}[]");
    set(schema, path, json!({"maxItems": 100, "x-kubernetes-list-type": "atomic"}));
    set(schema, &items, json!({"required": ["key", "operator"]}));
    set(schema, &format!("{items}.key"), json!({"maxLength": 316, "pattern": QUALIFIED_NAME}));
    for (message, expression) in restricted("self", namer) {
        rule(schema, &format!("{items}.key"), &message, &expression);
    }
    one_of(schema, &format!("{items}.operator"), OPERATORS);
    set(
        schema,
        &format!("{items}.values"),
        json!({"maxLength": 63, "pattern": LABEL_VALUE, "x-kubernetes-list-type": "atomic"}),
    );
    if namer == Namer::Overlay {
        rule(
            schema,
            path,
            "requirements with operator 'NotIn' must have a value defined",
            "self.all(x, x.operator == 'NotIn' ? x.values.size() != 0 : true)",
        );
    }
    rule(
        schema,
        path,
        "requirements with operator 'In' must have a value defined",
        "self.all(x, x.operator == 'In' ? x.values.size() != 0 : true)",
    );
    rule(
        schema,
        path,
        if namer == Namer::Overlay {
            "requirements operator 'Gt', 'Lt', 'Gte' or 'Lte' must have a single positive integer value"
        } else {
            "requirements operator 'Gt', 'Lt', 'Gte', or 'Lte' must have a single positive integer value"
        },
        "self.all(x, x.operator in ['Gt', 'Lt', 'Gte', 'Lte'] ? (x.values.size() == 1 && int(x.values[0]) >= 0) : true)",
    );
    if namer != Namer::Overlay {
        set(schema, &format!("{items}.minValues"), json!({"minimum": 1, "maximum": 50}));
        clear(schema, &format!("{items}.minValues"), &["format"]);
        rule(
            schema,
            path,
            "requirements with 'minValues' must have at least that many values specified in the 'values' field",
            "self.all(x, (x.operator == 'In' && has(x.minValues)) ? x.values.size() >= x.minValues : true)",
        );
    }
}

/// Labels of the kubernetes.io domain that v1beta1 lets users name.
const KUBERNETES_LABELS: &[&str] = &[
    "beta.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "node.kubernetes.io/windows-build",
];

/// AWS labels that v1beta1 lets users name.
const AWS_LABELS_V1BETA1: &[&str] = &[
    "instance-encryption-in-transit-supported",
    "instance-category",
    "instance-hypervisor",
    "instance-family",
    "instance-generation",
    "instance-local-nvme",
    "instance-size",
    "instance-cpu",
    "instance-cpu-manufacturer",
    "instance-memory",
    "instance-ebs-bandwidth",
    "instance-network-bandwidth",
    "instance-gpu-name",
    "instance-gpu-manufacturer",
    "instance-gpu-count",
    "instance-gpu-memory",
    "instance-accelerator-name",
    "instance-accelerator-manufacturer",
    "instance-accelerator-count",
];

fn restricted_v1beta1(variable: &str, of_pool: bool) -> Vec<(String, String)> {
    let quoted =
        |keys: Vec<String>| keys.iter().map(|k| format!("'{k}'")).collect::<Vec<_>>().join(", ");
    let kubernetes = quoted(KUBERNETES_LABELS.iter().map(|k| (*k).to_owned()).collect());
    let aws = quoted(AWS_LABELS_V1BETA1.iter().map(|k| format!("karpenter.k8s.aws/{k}")).collect());
    let ends = |domain: &str| format!("{variable}.find('^([^/]+)').endsWith('{domain}')");
    let mut rules = vec![
        (
            "label domain \"kubernetes.io\" is restricted".to_owned(),
            format!(
                "{variable} in [{kubernetes}] || {} || {} || !{}",
                ends("node.kubernetes.io"),
                ends("node-restriction.kubernetes.io"),
                ends("kubernetes.io")
            ),
        ),
        (
            "label domain \"k8s.io\" is restricted".to_owned(),
            format!("{} || !{}", ends("kops.k8s.io"), ends("k8s.io")),
        ),
        (
            "label domain \"karpenter.sh\" is restricted".to_owned(),
            format!(
                "{variable} in ['karpenter.sh/capacity-type', 'karpenter.sh/nodepool'] || !{}",
                ends("karpenter.sh")
            ),
        ),
    ];
    if of_pool {
        rules.push((
            "label \"karpenter.sh/nodepool\" is restricted".to_owned(),
            format!("{variable} != 'karpenter.sh/nodepool'"),
        ));
    }
    rules.push((
        "label \"kubernetes.io/hostname\" is restricted".to_owned(),
        format!("{variable} != 'kubernetes.io/hostname'"),
    ));
    rules.push((
        "label domain \"karpenter.k8s.aws\" is restricted".to_owned(),
        format!("{variable} in [{aws}] || !{}", ends("karpenter.k8s.aws")),
    ));
    rules
}

/// Turns a v1 list of requirements into that of v1beta1.
pub(super) fn requirements_v1beta1(schema: &mut Value, path: &str, of_pool: bool) {
    let key = format!("{path}[].key");
    // Late releases of 0.37 allow as many as v1.
    set(schema, path, json!({"maxItems": 100}));
    clear(schema, path, &["x-kubernetes-list-type"]);
    one_of(schema, &format!("{path}[].operator"), OPERATORS_V1BETA1);
    clear_rules(schema, &key);
    for (message, expression) in restricted_v1beta1("self", of_pool) {
        rule(schema, &key, &message, &expression);
    }
    clear_rules(schema, path);
    rule(
        schema,
        path,
        "requirements with operator 'In' must have a value defined",
        "self.all(x, x.operator == 'In' ? x.values.size() != 0 : true)",
    );
    rule(
        schema,
        path,
        "requirements operator 'Gt' or 'Lt' must have a single positive integer value",
        "self.all(x, (x.operator == 'Gt' || x.operator == 'Lt') ? (x.values.size() == 1 && int(x.values[0]) >= 0) : true)",
    );
    rule(
        schema,
        path,
        "requirements with 'minValues' must have at least that many values specified in the 'values' field",
        "self.all(x, (x.operator == 'In' && has(x.minValues)) ? x.values.size() >= x.minValues : true)",
    );
}

/// Turns the taints of v1 into those of v1beta1, whose schema does not say how lists merge.
pub(super) fn taints_v1beta1(schema: &mut Value, node: &str) {
    for field in ["taints", "startupTaints"] {
        clear(schema, &format!("{node}.{field}"), &["x-kubernetes-list-type"]);
    }
}

/// Turns the labels of a v1 template into those of v1beta1.
pub(super) fn template_labels_v1beta1(schema: &mut Value, path: &str) {
    clear_rules(schema, path);
    clear(schema, path, &["x-kubernetes-map-type"]);
    for (message, expression) in restricted_v1beta1("x", true) {
        rule(schema, path, &message, &format!("self.all(x, {expression})"));
    }
}

/// The node class of a v1 NodePool or NodeClaim.
pub(super) fn class_ref(schema: &mut Value, path: &str) {
    set(schema, path, json!({"required": ["group", "kind", "name"]}));
    set(schema, &format!("{path}.group"), json!({"pattern": "^[^/]*$"}));
    for field in ["group", "kind", "name"] {
        rule(
            schema,
            &format!("{path}.{field}"),
            &format!("{field} may not be empty"),
            "self != ''",
        );
    }
}

/// The node class of a v1beta1 NodePool or NodeClaim.
pub(super) fn class_ref_v1beta1(schema: &mut Value, path: &str) {
    *at(schema, path) = json!({
        "type": "object",
        "description": "The cloud's side of the nodes.",
        "required": ["name"],
        "properties": {
            "apiVersion": {"type": "string", "description": "API version of the node class."},
            "kind": {"type": "string", "description": "Kind of the node class."},
            "name": {"type": "string", "description": "Name of the node class."},
        },
    });
}

// Karpenter 0.37's rules and messages for the kubelet settings of v1beta1.
const KUBELET_RESERVED: &str = "['cpu','memory','ephemeral-storage','pid']";
const KUBELET_SIGNALS: &str = "['memory.available','nodefs.available','nodefs.inodesFree','imagefs.available','imagefs.inodesFree','pid.available']";
const EVICTION: &str = r"^((\d{1,2}(\.\d{1,2})?|100(\.0{1,2})?)%||(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?)$";

/// The kubelet's settings in v1beta1, where NodePools and NodeClaims hold them.
pub(super) fn kubelet_v1beta1() -> Value {
    let keys = |field: &str, allowed: &str| {
        json!({"message": format!("valid keys for {field} are {allowed}"),
            "rule": format!("self.all(x, x in {allowed})")})
    };
    let reserved = |field: &str| {
        json!({
            "type": "object",
            "description": "Resources kept from pods.",
            "additionalProperties": {"type": "string", "pattern": crate::schema::QUANTITY},
            "x-kubernetes-validations": [
                keys(field, KUBELET_RESERVED),
                {"message": format!("{field} value cannot be a negative resource quantity"),
                    "rule": "self.all(x, !self[x].startsWith('-'))"},
            ],
        })
    };
    let eviction = |field: &str, pattern: bool| {
        let mut values = json!({"type": "string"});
        if pattern {
            values["pattern"] = json!(EVICTION);
        }
        json!({"type": "object", "description": "Eviction thresholds by signal.",
            "additionalProperties": values,
            "x-kubernetes-validations": [keys(field, KUBELET_SIGNALS)]})
    };
    let number = |text: &str| json!({"type": "integer", "format": "int32", "minimum": 0, "description": text});
    let percent = |text: &str| {
        let mut percent = number(text);
        percent["maximum"] = json!(100);
        percent
    };
    json!({
        "type": "object",
        "description": "Settings of the kubelet.",
        "properties": {
            "clusterDNS": {"type": "array", "items": {"type": "string"},
                "description": "Addresses of the cluster's DNS server."},
            "cpuCFSQuota": {"type": "boolean",
                "description": "Whether CPU limits are enforced by CFS quota."},
            "evictionHard": eviction("evictionHard", true),
            "evictionMaxPodGracePeriod": {"type": "integer", "format": "int32",
                "description": "The longest grace period, in seconds, of pods evicted by a soft threshold."},
            "evictionSoft": eviction("evictionSoft", true),
            "evictionSoftGracePeriod": eviction("evictionSoftGracePeriod", false),
            "imageGCHighThresholdPercent": percent("Disk usage at which unused images are removed."),
            "imageGCLowThresholdPercent": percent("Disk usage down to which they are removed."),
            "kubeReserved": reserved("kubeReserved"),
            "maxPods": number("The most pods on a node."),
            "podsPerCore": number("The most pods for each core; maxPods bounds it."),
            "systemReserved": reserved("systemReserved"),
        },
        "x-kubernetes-validations": [
            {"message": "imageGCHighThresholdPercent must be greater than imageGCLowThresholdPercent",
                "rule": "has(self.imageGCHighThresholdPercent) && has(self.imageGCLowThresholdPercent) ? self.imageGCHighThresholdPercent > self.imageGCLowThresholdPercent : true"},
            {"message": "evictionSoft OwnerKey does not have a matching evictionSoftGracePeriod",
                "rule": "has(self.evictionSoft) ? self.evictionSoft.all(e, (e in self.evictionSoftGracePeriod)):true"},
            {"message": "evictionSoftGracePeriod OwnerKey does not have a matching evictionSoft",
                "rule": "has(self.evictionSoftGracePeriod) ? self.evictionSoftGracePeriod.all(e, (e in self.evictionSoft)):true"},
        ],
    })
}
