//! Dynamic Resource Allocation (DRA): which devices a pod's ResourceClaims can have on which node.
//!
//! [`Objects`] holds the cluster's slices, classes and claims, parsed. For a scheduling round they
//! become an [`Inventory`] ([`inventory`]). The round asks its [`Ledger`] ([`ledger`]) whether an
//! existing or a planned node could serve a pod's claims, and books the devices that it decides on.
//! The search itself ([`search`]) goes depth first through claims, requests and devices; selectors
//! are CEL ([`selector`]).
//!
//! The result depends on the input only. The search is bounded by a number of steps instead of by
//! time as in Karpenter, so that the same cluster always gives the same answer.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};

use super::pod::PodKey;

pub mod claim;
pub mod device;
pub mod inventory;
pub mod ledger;
pub mod pool;
mod search;
pub mod selector;

pub use claim::{Claim, Class, PodClaim};
pub use device::{Slice, TypePool};
pub use inventory::{DeviceSetId, Inventory};
pub use ledger::{ClaimPlan, Ledger, NodePlan, Site, TypeGroup};

/// Namespace and name of a ResourceClaim.
pub type ClaimKey = PodKey;

/// What scheduling reads of dynamic resources.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// ResourceSlices by name.
    pub slices: BTreeMap<String, Arc<Slice>>,
    /// DeviceClasses by name.
    pub classes: BTreeMap<String, Arc<Class>>,
    /// ResourceClaims.
    pub claims: BTreeMap<ClaimKey, Arc<Claim>>,
}

impl Objects {
    /// Takes in a ResourceSlice.
    pub fn set_slice(&mut self, object: &ResourceSlice) {
        let name = object.metadata.name.clone().unwrap_or_default();
        self.slices.insert(name, Arc::new(Slice::new(object)));
    }

    /// Takes in a DeviceClass.
    pub fn set_class(&mut self, object: &DeviceClass) {
        let name = object.metadata.name.clone().unwrap_or_default();
        self.classes.insert(name, Arc::new(Class::new(object)));
    }

    /// Takes in a ResourceClaim.
    pub fn set_claim(&mut self, object: &ResourceClaim) {
        let claim = Claim::new(object);
        self.claims.insert(claim.key.clone(), Arc::new(claim));
    }
}

/// One device of the cluster: driver, pool, name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// The driver that publishes it.
    pub driver: Arc<str>,
    /// The pool that it belongs to.
    pub pool: Arc<str>,
    /// Its name within the pool.
    pub device: Arc<str>,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.driver, self.pool, self.device)
    }
}

/// Why claims cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A pod refers to a claim that is not there.
    #[error("resourceclaim \"{0}\" not found")]
    ClaimNotFound(ClaimKey),
    /// A request refers to a class that is not there.
    #[error("deviceclass {0:?} not found")]
    ClassNotFound(Arc<str>),
    /// A claim that cannot be read, or asks for something that is not supported.
    #[error("resourceclaim \"{0}\": {1}")]
    Unsupported(ClaimKey, String),
    /// A selector that does not compile, or fails for a device.
    #[error("{0}")]
    Selector(String),
    /// A pool with slices that are missing or contradict each other, for a request for all devices.
    #[error(
        "resourceclaim \"{0}\": request {1:?} asks for all devices, but resource pool {2} is {3}"
    )]
    Pool(ClaimKey, Arc<str>, String, &'static str),
    /// A shared claim that was given devices of another planned node.
    #[error("claim is bound to a different in-flight NodeClaim")]
    BoundElsewhere,
    /// A claim whose devices cannot be reached from the node.
    #[error("resourceclaim \"{0}\" is allocated elsewhere")]
    AllocatedElsewhere(ClaimKey),
    /// No way of choosing devices was found.
    #[error("resourceclaim \"{0}\": no devices are left that satisfy request {1:?}")]
    NoDevices(ClaimKey, Arc<str>),
    /// The search took too many steps.
    #[error("resourceclaim \"{0}\": too many combinations of devices to try")]
    GaveUp(ClaimKey),
}

#[cfg(test)]
mod tests;
