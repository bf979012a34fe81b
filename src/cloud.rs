//! The cloud provider: the trait that controllers use, its error classes, and the implementations.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use crate::api::v1::{EC2NodeClass, NodeClaim, NodePool};
use crate::scheduling::instance_type::InstanceType;

#[cfg(feature = "aws")]
pub mod aws;
pub mod fake;
pub mod metered;

/// What a controller needs of a cloud.
#[async_trait]
pub trait CloudProvider: Send + Sync + 'static {
    /// Launches an instance of the class for the claim, or finds the one launched before.
    ///
    /// Returns the claim with labels, annotations, provider id, capacity and allocatable filled in.
    async fn create(
        &self,
        claim: &NodeClaim,
        class: Option<&EC2NodeClass>,
    ) -> Result<NodeClaim, Error>;

    /// Asks for the instance's termination; [`Error::NodeClaimNotFound`] once it is gone.
    async fn delete(&self, claim: &NodeClaim) -> Result<(), Error>;

    /// The instance behind a provider id, as a claim without what only its type or class knows.
    async fn get(&self, provider_id: &str) -> Result<NodeClaim, Error>;

    /// Every instance that belongs to this cluster, as [`CloudProvider::get`] shows it.
    async fn list(&self) -> Result<Vec<NodeClaim>, Error>;

    /// What a NodePool may launch with its class.
    async fn instance_types(
        &self,
        pool: &NodePool,
        class: Option<&EC2NodeClass>,
    ) -> Result<Arc<[Arc<InstanceType>]>, Error>;

    /// Why the claim's instance no longer matches its NodePool's class, if so.
    async fn is_drifted(
        &self,
        claim: &NodeClaim,
        pool: &NodePool,
        class: Option<&EC2NodeClass>,
    ) -> Result<Option<String>, Error>;

    /// Labels that the claim gets when its Node registers; `None` while they are not known yet.
    async fn registration_labels(
        &self,
        _claim: &NodeClaim,
    ) -> Result<Option<BTreeMap<String, String>>, Error> {
        Ok(Some(BTreeMap::new()))
    }

    /// Conditions that a Node is repaired for.
    fn repair_policies(&self) -> &Policies {
        static NONE: Policies = Policies::none();
        &NONE
    }

    /// Asks for a reboot of the claim's instance. `request` names the reboot: asked for again by the
    /// same name, it is not made a second time.
    async fn reboot(&self, _claim: &NodeClaim, _request: &str) -> Result<(), Error> {
        Err(Error::RebootRefused("reboot not implemented by the cloud provider".to_owned()))
    }

    /// The provider's name, for metrics.
    fn name(&self) -> &'static str;
}

pub use crate::disruption::repair::{Policies, RepairPolicy};

/// What went wrong, by what has to be done about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The instance does not exist (any more).
    #[error("nodeclaim not found, {0}")]
    NodeClaimNotFound(String),
    /// No offering could be launched; the NodeClaim is given up and its pods are scheduled again.
    #[error("insufficient capacity, {0}")]
    InsufficientCapacity(Detail),
    /// The node class cannot be used yet.
    #[error("NodeClassRef not ready, {0}")]
    NodeClassNotReady(String),
    /// The launch failed; it is tried again.
    #[error("{message}")]
    Create { reason: String, condition: String, message: Detail },
    /// A call that does not decide about the launch failed.
    #[error("{0}")]
    Call(Detail),
    /// The instance cannot be rebooted, however often it is tried.
    #[error("reboot rejected by the cloud provider: {0}")]
    RebootRefused(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// A call to the cloud that failed, with the fields that the log shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailedCall {
    /// The service's name, such as `EC2`.
    pub service: &'static str,
    /// The API's name, such as `CreateFleet`.
    pub operation: &'static str,
    /// Status of the answer; 0 without one.
    pub status: u16,
    /// The API's error code.
    pub code: String,
    /// The cloud's own id of the request; empty without an answer.
    pub request_id: String,
}

/// What went wrong, and the call that did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    pub text: String,
    /// `None` where no call was made.
    pub call: Option<Box<FailedCall>>,
}

impl std::fmt::Display for Detail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl<T: Into<String>> From<T> for Detail {
    fn from(text: T) -> Self {
        Self { text: text.into(), call: None }
    }
}

impl Detail {
    /// The same, with the call that failed.
    #[must_use]
    pub fn of_call(mut self, call: FailedCall) -> Self {
        self.call = Some(Box::new(call));
        self
    }
}

impl Error {
    /// True when the instance is gone.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NodeClaimNotFound(_))
    }

    /// The class, for metrics.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::NodeClaimNotFound(_) => "NodeClaimNotFoundError",
            Self::InsufficientCapacity(_) => "InsufficientCapacityError",
            Self::NodeClassNotReady(_) => "NodeClassNotReadyError",
            // Karpenter's metric leaves the label empty for errors of no class of its own.
            Self::Create { .. } | Self::Call(_) | Self::RebootRefused(_) | Self::Other(_) => "",
        }
    }

    /// The call that failed, where it was one.
    #[must_use]
    pub fn failed_call(&self) -> Option<FailedCall> {
        match self {
            Self::InsufficientCapacity(detail)
            | Self::Create { message: detail, .. }
            | Self::Call(detail) => detail.call.as_deref().cloned(),
            Self::NodeClaimNotFound(_)
            | Self::NodeClassNotReady(_)
            | Self::RebootRefused(_)
            | Self::Other(_) => None,
        }
    }
}
