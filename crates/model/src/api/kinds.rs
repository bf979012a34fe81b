//! The kinds that are served.

/// One kind in one version.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
    /// True when `status` is written through its own subresource only.
    pub status: bool,
    /// True for kinds that a CustomResourceDefinition defines.
    pub custom: bool,
    /// True when `metadata.generation` counts changes of the spec.
    pub generation: bool,
}

impl Kind {
    /// `nodes`, `nodeclaims.karpenter.sh`.
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// `v1`, `apps/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The place of the kind in [`KINDS`].
    pub(crate) fn index(&self) -> usize {
        KINDS.iter().position(|k| std::ptr::eq(k, self)).unwrap_or_default()
    }
}

const fn built_in(
    group: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
    status: bool,
) -> Kind {
    let generation = status && !group.is_empty();
    Kind { group, version: "v1", plural, kind, namespaced, status, custom: false, generation }
}

const fn custom(
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
) -> Kind {
    Kind { group, version, plural, kind, namespaced, status: true, custom: true, generation: true }
}

/// Every kind, in the order of discovery.
pub static KINDS: &[Kind] = &[
    built_in("", "pods", "Pod", true, true),
    built_in("", "nodes", "Node", false, true),
    built_in("", "namespaces", "Namespace", false, true),
    built_in("", "services", "Service", true, true),
    built_in("", "persistentvolumeclaims", "PersistentVolumeClaim", true, true),
    built_in("", "persistentvolumes", "PersistentVolume", false, true),
    built_in("", "replicationcontrollers", "ReplicationController", true, true),
    built_in("", "podtemplates", "PodTemplate", true, false),
    built_in("", "configmaps", "ConfigMap", true, false),
    built_in("", "secrets", "Secret", true, false),
    built_in("", "events", "Event", true, false),
    built_in("apps", "deployments", "Deployment", true, true),
    built_in("apps", "replicasets", "ReplicaSet", true, true),
    built_in("apps", "statefulsets", "StatefulSet", true, true),
    built_in("apps", "daemonsets", "DaemonSet", true, true),
    built_in("batch", "jobs", "Job", true, true),
    built_in("policy", "poddisruptionbudgets", "PodDisruptionBudget", true, true),
    built_in("storage.k8s.io", "storageclasses", "StorageClass", false, false),
    built_in("storage.k8s.io", "csinodes", "CSINode", false, false),
    built_in("storage.k8s.io", "volumeattachments", "VolumeAttachment", false, true),
    built_in("coordination.k8s.io", "leases", "Lease", true, false),
    built_in("scheduling.k8s.io", "priorityclasses", "PriorityClass", false, false),
    built_in("resource.k8s.io", "resourceslices", "ResourceSlice", false, false),
    built_in("resource.k8s.io", "deviceclasses", "DeviceClass", false, false),
    built_in("resource.k8s.io", "resourceclaims", "ResourceClaim", true, true),
    custom("karpenter.sh", "v1", "nodepools", "NodePool", false),
    custom("karpenter.sh", "v1", "nodeclaims", "NodeClaim", false),
    custom("karpenter.sh", "v1alpha1", "nodeoverlays", "NodeOverlay", false),
    custom("karpenter.k8s.aws", "v1", "ec2nodeclasses", "EC2NodeClass", false),
    custom("autoscaling.x-k8s.io", "v1beta1", "capacitybuffers", "CapacityBuffer", true),
];

/// The kind of that plural name in an API version (`v1`, `apps/v1`).
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.group == group && k.version == version && k.plural == plural)
}

/// The kind of that plural name.
///
/// # Panics
/// When there is none: the names are those of [`KINDS`].
#[must_use]
pub fn kind(plural: &str) -> &'static Kind {
    match KINDS.iter().find(|k| k.plural == plural) {
        Some(kind) => kind,
        None => panic!("no kind {plural:?} is served"),
    }
}
