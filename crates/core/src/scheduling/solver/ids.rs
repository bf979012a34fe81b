//! What the solver numbers.

pub(super) use crate::scheduling::ids::{Id, Interned, List};

crate::scheduling::ids::ids! {
    /// A label key.
    pub(super) KeyId,
    /// A value of one key.
    pub(super) ValueId,
    /// A requirement on one key.
    pub(super) ReqId,
    /// A set of requirements, the host name left out; the first has none.
    pub(super) SetId,
    /// A list of tolerations.
    pub(super) TolerationsId,
    /// A list of taints; the first is empty.
    pub(super) TaintsId,
    /// A mould of new nodes, one for each NodePool that can launch some.
    pub(super) TemplateId,
    /// A list of instance types.
    pub(super) CatalogId,
    /// What a planned node's types depend on but for the size of its pods.
    pub(super) ShapeId,
    /// A set of rows that are out of the question; the first leaves all.
    pub(super) MaskId,
    /// A topology group.
    pub(super) GroupId,
    /// A node filter; the first lets every node pass.
    pub(super) FilterId,
    /// A node for groups of host names: those that exist, then those that are planned.
    pub(super) HostId,
    /// Nodes that exist with the same taints and labels, as far as these matter.
    pub(super) SortId,
    /// A class of constraints.
    pub(super) ClassId,
    /// What a pod requests.
    pub(super) NeedId,
    /// A kind of pod.
    pub(super) KindId,
    /// A pod that waits.
    pub(super) PodId,
    /// A DaemonSet.
    pub(super) DaemonId,
    /// A namespace.
    pub(super) NamespaceId,
    /// Constraints as pods have them.
    pub(super) ConstraintsId,
    /// Labels as pods have them, with the namespace.
    pub(super) LabelsId,
    /// What a node that is packed again is so far.
    pub(super) StateId,
    /// Pods that may be exchanged for each other when nodes are packed again.
    pub(super) ItemId,
}
