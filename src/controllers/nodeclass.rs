//! EC2NodeClasses: what their selectors find, whether they can be used, and their removal.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use parking_lot::Mutex;
use serde_json::json;
use tokio::task::JoinSet;

use super::patch::{self, Lock};
use super::runner::{self, Identity};
use super::{Context, Error, Outcome};
use crate::api::v1::{EC2NodeClass, EC2NodeClassStatus, NodeClaim};
use crate::api::{annotations, conditions, finalizers, labels};
use crate::cloud::aws::AwsProvider;
use crate::cloud::aws::ami::AmiError;
use crate::cluster::Change;
use crate::operator::logging;

mod finalize;
mod validation;

const NODECLASS: Identity =
    Identity { name: "nodeclass", group: labels::AWS_GROUP, kind: "EC2NodeClass", workers: 10 };
const MINUTE: Duration = Duration::from_secs(60);

/// What the steps share.
pub(super) struct Controller {
    pub ctx: Arc<Context>,
    pub aws: Arc<AwsProvider>,
    /// What was logged last about each class and kind of thing.
    told: Mutex<HashMap<(String, &'static str), String>>,
}

/// Starts the controller.
pub fn start(ctx: &Arc<Context>, aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    let controller =
        Arc::new(Controller { ctx: Arc::clone(ctx), aws: Arc::clone(aws), told: Mutex::default() });
    tasks.spawn(runner::run(
        NODECLASS,
        Arc::clone(ctx),
        |ctx| ctx.cluster.classes().iter().filter_map(|c| c.metadata.name.clone()).collect(),
        |ctx, change| match change {
            Change::NodeClass(name) => vec![name.clone()],
            // A class that is being deleted waits for its last NodeClaim.
            Change::NodeClaim(name) if ctx.cluster.claim(name).is_none() => ctx
                .cluster
                .classes()
                .iter()
                .filter(|c| c.metadata.deletion_timestamp.is_some())
                .filter_map(|c| c.metadata.name.clone())
                .collect(),
            _ => Vec::new(),
        },
        move |_, name| {
            let controller = Arc::clone(&controller);
            async move { controller.reconcile(name).await }
        },
    ));
}

/// Conditions that make up `Ready` of an EC2NodeClass.
pub fn dependents(reserved_capacity: bool) -> Vec<&'static str> {
    let mut list = vec![
        conditions::AMIS_READY,
        conditions::SUBNETS_READY,
        conditions::SECURITY_GROUPS_READY,
        conditions::INSTANCE_PROFILE_READY,
        conditions::VALIDATION_SUCCEEDED,
        conditions::PLACEMENT_GROUP_READY,
    ];
    if reserved_capacity {
        list.push(conditions::CAPACITY_RESERVATIONS_READY);
    }
    list
}

fn status_of(class: &mut EC2NodeClass) -> &mut EC2NodeClassStatus {
    class.status.get_or_insert_default()
}

impl Controller {
    fn now(&self) -> jiff::Timestamp {
        self.ctx.clock.now()
    }

    fn set_true(&self, class: &mut EC2NodeClass, kind: &str) {
        let generation = class.metadata.generation;
        conditions::set_true(&mut status_of(class).conditions, kind, generation, self.now());
    }

    fn set(&self, class: &mut EC2NodeClass, kind: &str, status: &str, reason: &str, message: &str) {
        let generation = class.metadata.generation;
        let now = self.now();
        let list = &mut status_of(class).conditions;
        conditions::set(list, kind, status, reason, message, generation, now);
    }

    /// True when this differs from what was told last.
    fn is_news(&self, class: &EC2NodeClass, kind: &'static str, text: String) -> bool {
        let key = (class.metadata.name.clone().unwrap_or_default(), kind);
        self.told.lock().insert(key, text.clone()).as_deref() != Some(text.as_str())
    }

    async fn reconcile(&self, name: String) -> Outcome {
        let api = Api::<EC2NodeClass>::all(self.ctx.client.clone());
        let Some(before) = api.get_opt(&name).await? else { return Ok(None) };
        if before.metadata.deletion_timestamp.is_some() {
            return self.finalize(&api, &before).await;
        }
        let mut class = before.clone();
        let held = class.metadata.finalizers.get_or_insert_default();
        if !held.iter().any(|f| f == finalizers::NODECLASS_TERMINATION) {
            held.push(finalizers::NODECLASS_TERMINATION.to_owned());
        }
        self.stamp(&mut class).await?;
        let mut again = Vec::new();
        let mut errors = Vec::new();
        let mut note = |outcome: Outcome| match outcome {
            Ok(delay) => again.extend(delay),
            Err(error) => errors.push(error.to_string()),
        };
        let generation = class.metadata.generation;
        let dependents = dependents(self.ctx.settings.gates.reserved_capacity);
        let created = class.metadata.creation_timestamp.as_ref().map_or(self.now(), |t| t.0);
        let list = &mut status_of(&mut class).conditions;
        conditions::init(list, &dependents, generation, created);
        note(self.amis(&mut class).await);
        if self.ctx.settings.gates.reserved_capacity {
            note(self.capacity_reservations(&mut class));
        }
        note(self.placement_group(&mut class));
        note(self.subnets(&mut class).await);
        note(self.security_groups(&mut class).await);
        note(self.instance_profile(&mut class).await);
        note(self.validate(&mut class).await);
        let now = self.now();
        let list = &mut status_of(&mut class).conditions;
        conditions::set_ready(list, &dependents, generation, now);
        match patch::apply(&api, &before, &class, Lock::Optimistic).await {
            Err(error) if patch::is_conflict(&error) => return Ok(Some(Duration::from_secs(1))),
            other => other?,
        }
        if !errors.is_empty() {
            return Err(Error::Other(errors.join("; ")));
        }
        Ok(again.into_iter().min())
    }

    /// Writes the hash; NodeClaims stamped with another version get today's, so that an upgrade
    /// drifts nothing.
    async fn stamp(&self, class: &mut EC2NodeClass) -> Result<(), Error> {
        let (hash_key, version_key) =
            (annotations::EC2NODECLASS_HASH, annotations::EC2NODECLASS_HASH_VERSION);
        let version = annotations::EC2NODECLASS_HASH_VERSION_VALUE;
        let hash = self.aws.class_hash(class);
        let marks = class.metadata.annotations.get_or_insert_default();
        let outdated = marks.get(version_key).is_none_or(|v| v != version);
        marks.insert(hash_key.to_owned(), hash.clone());
        marks.insert(version_key.to_owned(), version.to_owned());
        if !outdated {
            return Ok(());
        }
        let name = class.metadata.name.clone().unwrap_or_default();
        let api = Api::<NodeClaim>::all(self.ctx.client.clone());
        for before in self.ctx.cluster.claims() {
            let stamped = before.metadata.annotations.as_ref().and_then(|a| a.get(version_key));
            if before.spec.node_class_ref.name != name || stamped.is_some_and(|v| v == version) {
                continue;
            }
            let mut claim = (*before).clone();
            let drifted = claim
                .status
                .as_ref()
                .is_some_and(|s| conditions::get(&s.conditions, conditions::DRIFTED).is_some());
            let marks = claim.metadata.annotations.get_or_insert_default();
            marks.insert(version_key.to_owned(), version.to_owned());
            if !drifted {
                marks.insert(hash_key.to_owned(), hash.clone());
            }
            patch::apply(&api, &before, &claim, Lock::None).await?;
        }
        Ok(())
    }

    async fn amis(&self, class: &mut EC2NodeClass) -> Outcome {
        let kind = conditions::AMIS_READY;
        let version = self.aws.kubernetes_version().await?;
        let found = match self.aws.amis.list(class, &version).await {
            Ok(found) => found,
            Err(AmiError::UnsupportedAlias(text)) => {
                self.set(class, kind, conditions::FALSE, "UnsupportedAlias", &text);
                return Ok(None);
            }
            Err(error) => return Err(Error::Other(error.to_string())),
        };
        if found.is_empty() {
            status_of(class).amis.clear();
            let message = "AMISelector did not match any AMIs";
            self.set(class, kind, conditions::FALSE, "AMINotFound", message);
            return Ok(Some(MINUTE));
        }
        let ids: Vec<&str> = found.iter().map(|a| a.id.as_str()).collect();
        if self.is_news(class, kind, ids.join(",")) {
            tracing::debug!("ids" = %logging::json(&ids), "discovered amis");
        }
        status_of(class).amis = found;
        self.set_true(class, kind);
        Ok(Some(5 * MINUTE))
    }

    /// Capacity reservations are not looked up: a class that selects some says so.
    fn capacity_reservations(&self, class: &mut EC2NodeClass) -> Outcome {
        let kind = conditions::CAPACITY_RESERVATIONS_READY;
        if class.spec.capacity_reservation_selector_terms.as_ref().is_none_or(Vec::is_empty) {
            self.set_true(class, kind);
            return Ok(None);
        }
        let message = "spec.capacityReservationSelectorTerms: capacity reservations are not supported by this release";
        self.set(class, kind, conditions::FALSE, "Unsupported", message);
        Ok(None)
    }

    /// Placement groups are not looked up: a class that selects one says so.
    fn placement_group(&self, class: &mut EC2NodeClass) -> Outcome {
        let kind = conditions::PLACEMENT_GROUP_READY;
        if class.spec.placement_group_selector.is_none() {
            self.set_true(class, kind);
            return Ok(None);
        }
        let message =
            "spec.placementGroupSelector: placement groups are not supported by this release";
        self.set(class, kind, conditions::FALSE, "PlacementGroupResolutionFailed", message);
        Ok(None)
    }

    async fn subnets(&self, class: &mut EC2NodeClass) -> Outcome {
        let kind = conditions::SUBNETS_READY;
        let found = self.aws.subnets.list(class).await?;
        if found.is_empty() {
            status_of(class).subnets.clear();
            let message = "SubnetSelector did not match any Subnets";
            self.set(class, kind, conditions::FALSE, "SubnetsNotFound", message);
            return Ok(Some(MINUTE));
        }
        let mut shown: Vec<_> = found
            .iter()
            .map(|s| json!({"id": s.id, "zone": s.zone, "zoneID": s.zone_id}))
            .collect();
        shown.sort_by_key(ToString::to_string);
        let shown = json!(shown);
        if self.is_news(class, kind, shown.to_string()) {
            tracing::debug!("subnets" = %logging::json(&shown), "discovered subnets");
        }
        status_of(class).subnets = found;
        self.set_true(class, kind);
        Ok(Some(MINUTE))
    }

    async fn security_groups(&self, class: &mut EC2NodeClass) -> Outcome {
        let kind = conditions::SECURITY_GROUPS_READY;
        let found = self.aws.security_groups.list(class).await?;
        if found.is_empty() {
            status_of(class).security_groups.clear();
            let message = "SecurityGroupSelector did not match any SecurityGroups";
            self.set(class, kind, conditions::FALSE, "SecurityGroupsNotFound", message);
            return Ok(Some(MINUTE));
        }
        let ids: Vec<&str> = found.iter().map(|g| g.id.as_str()).collect();
        if self.is_news(class, kind, ids.join(",")) {
            tracing::debug!("security-groups" = %logging::json(&ids), "discovered security groups");
        }
        status_of(class).security_groups = found;
        self.set_true(class, kind);
        Ok(Some(5 * MINUTE))
    }

    async fn instance_profile(&self, class: &mut EC2NodeClass) -> Outcome {
        let name = match (&class.spec.role, &class.spec.instance_profile) {
            (Some(role), _) => self.aws.instance_profiles.ensure(class, &role.clone()).await?,
            (None, Some(profile)) => profile.clone(),
            (None, None) => {
                return Err(Error::Other(
                    "spec.role, spec.instanceProfile: expected exactly one of them to be set"
                        .to_owned(),
                ));
            }
        };
        status_of(class).instance_profile = Some(name);
        self.set_true(class, conditions::INSTANCE_PROFILE_READY);
        Ok(None)
    }
}
