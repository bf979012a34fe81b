//! The cloud provider: the trait that controllers use, its error classes, and the implementations.

use std::sync::Arc;

use async_trait::async_trait;

use crate::api::v1::{NodeClaim, NodePool};
use crate::scheduling::instance_type::InstanceType;

pub mod aws;
pub mod fake;
pub mod metered;

/// What a controller needs of a cloud.
#[async_trait]
pub trait CloudProvider: Send + Sync + 'static {
    /// Launches an instance for the claim, or finds the one launched before.
    ///
    /// Returns the claim with labels, annotations, provider id, capacity and allocatable filled in.
    async fn create(&self, claim: &NodeClaim) -> Result<NodeClaim, Error>;

    /// Asks for the instance's termination; [`Error::NodeClaimNotFound`] once it is gone.
    async fn delete(&self, claim: &NodeClaim) -> Result<(), Error>;

    /// The instance behind a provider id, as a claim.
    async fn get(&self, provider_id: &str) -> Result<NodeClaim, Error>;

    /// Every instance that belongs to this cluster, as claims.
    async fn list(&self) -> Result<Vec<NodeClaim>, Error>;

    /// What a NodePool may launch.
    async fn instance_types(&self, pool: &NodePool) -> Result<Arc<[Arc<InstanceType>]>, Error>;

    /// Why the claim's instance no longer matches its node class, if so.
    async fn is_drifted(&self, claim: &NodeClaim) -> Result<Option<String>, Error>;

    /// The provider's name, for metrics.
    fn name(&self) -> &'static str;
}

/// What went wrong, by what has to be done about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The instance does not exist (any more).
    #[error("nodeclaim not found, {0}")]
    NodeClaimNotFound(String),
    /// No offering could be launched; the claim is given up and its pods scheduled anew.
    #[error("insufficient capacity, {0}")]
    InsufficientCapacity(String),
    /// The node class cannot be used yet.
    #[error("NodeClassRef not ready, {0}")]
    NodeClassNotReady(String),
    /// The launch failed; it is tried again.
    #[error("{message}")]
    Create { reason: String, condition: String, message: String },
    /// Anything else.
    #[error("{0}")]
    Other(String),
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
            Self::Create { .. } | Self::Other(_) => "",
        }
    }
}
