//! EC2NodeClasses: what their selectors find, whether they can be used, and their removal.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::patch;
use super::runner::{self, Identity};
use super::{Context, Error, Outcome};
use crate::api::v1::{EC2NodeClass, EC2NodeClassStatus};
use crate::api::{conditions, finalizers, labels};
use crate::cloud::aws::AwsProvider;
use crate::cluster::Change;
use crate::operator::metrics;

mod discovery;
mod dryrun;
mod finalize;
mod hash;
mod profile;
mod upkeep;
mod validation;

const NODECLASS: Identity =
    Identity { name: "nodeclass", group: labels::AWS_GROUP, kind: "EC2NodeClass", workers: 10 };
const MINUTE: Duration = Duration::from_secs(60);

/// What the steps share.
pub(super) struct Controller {
    pub ctx: Arc<Context>,
    pub aws: Arc<AwsProvider>,
    /// What was logged last about each class and kind of thing.
    logged: Mutex<HashMap<(String, &'static str), String>>,
    /// What the last dry runs of each class said.
    verdicts: validation::Verdicts,
}

/// Starts the controller.
pub fn start(ctx: &Arc<Context>, aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    hash::start(ctx, aws, tasks);
    upkeep::start(ctx, aws, tasks);
    let controller = Arc::new(Controller {
        ctx: Arc::clone(ctx),
        aws: Arc::clone(aws),
        logged: Mutex::default(),
        verdicts: validation::Verdicts::new(&ctx.clock),
    });
    tasks.spawn(runner::run(
        NODECLASS,
        Arc::clone(ctx),
        all_classes,
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

/// Names of all node classes.
fn all_classes(ctx: &Context) -> Vec<String> {
    ctx.cluster.classes().iter().filter_map(|c| c.metadata.name.clone()).collect()
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

    /// True when this differs from what was logged last.
    fn is_news(&self, class: &EC2NodeClass, kind: &'static str, text: String) -> bool {
        let key = (class.metadata.name.clone().unwrap_or_default(), kind);
        self.logged.lock().insert(key, text.clone()).as_deref() != Some(text.as_str())
    }

    /// Reports an error that only a change of the object can mend.
    fn terminal(&self, error: &str) -> Option<Duration> {
        terminal(error)
    }

    async fn reconcile(&self, name: String) -> Outcome {
        let api = Api::<EC2NodeClass>::all(self.ctx.client.clone());
        let Some(before) = self.ctx.cluster.class(&name) else { return Ok(None) };
        if before.metadata.deletion_timestamp.is_some() {
            return self.finalize(&api, &before).await;
        }
        let mut class = (*before).clone();
        let held = class.metadata.finalizers.get_or_insert_default();
        if !held.iter().any(|f| f == finalizers::NODECLASS_TERMINATION) {
            held.push(finalizers::NODECLASS_TERMINATION.to_owned());
        }
        let mut again = Vec::new();
        let mut errors = Vec::new();
        let mut note = |outcome: Outcome| match outcome {
            Ok(delay) => again.extend(delay),
            Err(error) => errors.push(error),
        };
        let generation = class.metadata.generation;
        let dependents = dependents(self.ctx.settings.gates.reserved_capacity);
        let created = class.metadata.creation_timestamp.as_ref().map_or(self.now(), |t| t.0);
        let list = &mut status_of(&mut class).conditions;
        conditions::init(list, &dependents, generation, created);
        note(self.amis(&mut class).await);
        if self.ctx.settings.gates.reserved_capacity {
            note(self.capacity_reservations(&mut class).await);
        }
        note(self.placement_group(&mut class).await);
        note(self.subnets(&mut class).await);
        note(self.security_groups(&mut class).await);
        note(self.instance_profile(&mut class).await);
        note(self.validate(&mut class).await);
        let now = self.now();
        let list = &mut status_of(&mut class).conditions;
        conditions::set_ready(list, &dependents, generation, now);
        if let Some(written) = patch::merge(&api, &*before, &class).await? {
            // Seen at once by the pass that this change brings about.
            self.ctx.cluster.apply_class(written);
        }
        Error::all(errors)?;
        Ok(again.into_iter().min())
    }
}

fn terminal(error: &str) -> Option<Duration> {
    metrics::RECONCILE_ERRORS.with_label_values(&[NODECLASS.name]).inc();
    metrics::TERMINAL_ERRORS.with_label_values(&[NODECLASS.name]).inc();
    tracing::error!("error" = error, "Reconciler error");
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_only_a_change_mends_is_counted_and_not_tried_again() {
        let count = || metrics::TERMINAL_ERRORS.with_label_values(&[NODECLASS.name]).get();
        let before = count();
        assert_eq!(terminal("so it is"), None);
        assert!(count() > before);
    }
}
