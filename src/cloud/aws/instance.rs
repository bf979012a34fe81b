//! Instances: launched through CreateFleet, found again by token and tag, terminated.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_sdk_ec2::types::Filter;
use jiff::Timestamp;
use kube::Api;
use parking_lot::{Mutex, RwLock};

use self::calls::{LIVE, Tag};
use super::batcher::{Batcher, Window};
use super::capacityreservation;
use super::clients::Clients;
use super::errors::AwsError;
use super::flight::Memo;
use super::launchtemplate;
use super::placementgroup;
use super::select::filter;
use super::subnet;
use super::tags::CLUSTER_NAME;
use super::unavailable::UnavailableOfferings;
use super::zonalshift;
use crate::api::labels;
use crate::api::v1::NodeClaim;
use crate::clock::Clock;
use crate::cloud::{Detail, Error};
use crate::operator::events::{Recorder, Report, reference};
use crate::operator::metrics;
use crate::operator::readable::Readable;

mod answer;
mod calls;
mod fleet;
pub mod identity;
mod launch;
mod record;
#[cfg(test)]
mod stub;

pub use self::record::{Instance, parse_provider_id};

// The windows are Karpenter's. Fleets wait shortest, since pods wait for them.
const FLEETS: Window = Window {
    name: "create_fleet",
    idle: Duration::from_millis(35),
    max: Duration::from_secs(1),
    items: 1000,
    per_call: identity::MOST,
};
const DESCRIPTIONS: Window = Window {
    name: "describe_instances",
    idle: Duration::from_millis(100),
    max: Duration::from_secs(1),
    items: 500,
    per_call: 500,
};
// Nothing waits for these answers in a hurry, and EC2 takes up to 1000 ids in a call.
const TERMINATIONS: Window = Window { name: "terminate_instances", ..DESCRIPTIONS };
const TAGGINGS: Window = Window { name: "create_tags", ..DESCRIPTIONS };

/// How long a reboot is remembered, so that it is not made twice.
const REBOOT_TTL: Duration = Duration::from_secs(3600);

/// What launches depend on beside their parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub cluster: String,
    /// Reserved capacity is in use.
    pub reserved_capacity: bool,
    /// A claim's minValues are a wish.
    pub best_effort_min_values: bool,
}

/// What launches are made with.
pub struct Parts {
    pub clients: Clients,
    pub kube: kube::Client,
    pub clock: Clock,
    pub unavailable: Arc<UnavailableOfferings>,
    pub subnets: Arc<subnet::Provider>,
    pub templates: Arc<launchtemplate::Provider>,
    pub placement_groups: Arc<placementgroup::Provider>,
    pub reservations: Arc<capacityreservation::Provider>,
    pub shifts: Arc<zonalshift::Provider>,
}

/// Launches, lists and terminates instances.
pub struct Provider {
    clients: Clients,
    kube: Api<Readable<NodeClaim>>,
    clock: Clock,
    unavailable: Arc<UnavailableOfferings>,
    subnets: Arc<subnet::Provider>,
    templates: Arc<launchtemplate::Provider>,
    placement_groups: Arc<placementgroup::Provider>,
    reservations: Arc<capacityreservation::Provider>,
    shifts: Arc<zonalshift::Provider>,
    options: Options,
    cluster: String,
    /// When this process began to launch: older claims may have an instance already.
    started: Timestamp,
    tries: Mutex<HashMap<String, Tried>>,
    /// The list in which lost launches are looked for.
    listed: Memo<(), Arc<[Instance]>, Error>,
    /// Reboots that EC2 took.
    reboots: Memo<String, (), AwsError>,
    /// Instances by id, from their launch on; kept in step by [`Provider::list`].
    known: RwLock<HashMap<String, Instance>>,
    recorder: OnceLock<Recorder>,
    fleets: Batcher<fleet::Ask, fleet::Answer, Arc<fleet::Content>>,
    descriptions: Batcher<String, Option<Instance>, ()>,
    terminations: Batcher<String, (), ()>,
    taggings: Batcher<Tag, (), BTreeMap<String, String>>,
}

/// What is known of a claim's launches so far.
#[derive(Clone, Debug)]
struct Tried {
    generation: u32,
    /// There may be an instance of which no answer arrived.
    unsure: bool,
    at: Timestamp,
}

impl Provider {
    /// A provider over the given parts.
    #[must_use]
    pub fn new(parts: Parts, options: Options) -> Self {
        let clients = &parts.clients;
        let (fleets, terminations, taggings) = (clients.clone(), clients.clone(), clients.clone());
        let descriptions = (clients.clone(), options.reserved_capacity);
        Self {
            // The key of a batcher decides which requests share a call: launches with the same
            // content share a fleet, and instances with the same tags are tagged together.
            fleets: Batcher::new(
                FLEETS,
                |ask: &fleet::Ask| Arc::clone(&ask.content),
                move |batch| fleet::create(fleets.clone(), batch),
            ),
            descriptions: Batcher::new(
                DESCRIPTIONS,
                |_| (),
                move |batch| calls::describe(descriptions.0.clone(), descriptions.1, batch),
            ),
            terminations: Batcher::new(
                TERMINATIONS,
                |_| (),
                move |batch| calls::terminate(terminations.clone(), batch),
            ),
            taggings: Batcher::new(
                TAGGINGS,
                |tag: &Tag| tag.tags.clone(),
                move |batch| calls::tag(taggings.clone(), batch),
            ),
            cluster: options.cluster.clone(),
            options,
            started: parts.clock.now(),
            kube: Api::all(parts.kube),
            reboots: Memo::new(&parts.clock, REBOOT_TTL),
            listed: Memo::new(&parts.clock, launch::FRESH),
            clock: parts.clock,
            clients: parts.clients,
            unavailable: parts.unavailable,
            subnets: parts.subnets,
            templates: parts.templates,
            placement_groups: parts.placement_groups,
            reservations: parts.reservations,
            shifts: parts.shifts,
            tries: Mutex::default(),
            known: RwLock::default(),
            recorder: OnceLock::new(),
        }
    }

    /// Events go there from now on.
    pub fn set_recorder(&self, recorder: Recorder) {
        // A second recorder would change nothing: the first one lives as long as the process.
        let _ = self.recorder.set(recorder);
    }

    /// Publishes an event on a claim.
    pub(super) fn report(&self, claim: &NodeClaim, report: Report<'_>) {
        if let Some(recorder) = self.recorder.get() {
            recorder.publish(report.on(reference(claim)));
        }
    }

    fn in_shifted_zone(&self, instance: &Instance) -> bool {
        instance.zone_id.as_deref().is_some_and(|id| self.shifts.is_shifted(id))
    }

    /// The error of what is not done to an instance whose zone work is kept away from.
    fn shifted(&self, instance: &Instance, skipped: &str) -> Error {
        Error::Other(format!(
            "instance {} is in zonally shifted availability zone {} ({}), skipping {skipped}",
            instance.id,
            instance.zone,
            instance.zone_id.as_deref().unwrap_or_default()
        ))
    }

    /// An instance by id, as it was when last seen.
    ///
    /// # Errors
    /// [`Error::NodeClaimNotFound`] when it does not exist or is terminated.
    pub async fn get(&self, id: &str) -> Result<Instance, Error> {
        if let Some(known) = self.known.read().get(id) {
            return Ok(known.clone());
        }
        self.get_fresh(id).await
    }

    /// An instance by id, as it is now; in a shifted zone as it was when last seen.
    ///
    /// # Errors
    /// [`Error::NodeClaimNotFound`] when it does not exist or is terminated.
    pub async fn get_fresh(&self, id: &str) -> Result<Instance, Error> {
        let known = self.known.read().get(id).cloned();
        if let Some(known) = known.filter(|i| self.in_shifted_zone(i)) {
            return Ok(known);
        }
        match self.descriptions.request(id.to_owned()).await {
            Ok(Some(found)) => {
                self.known.write().insert(id.to_owned(), found.clone());
                Ok(found)
            }
            Ok(None) => {
                self.known.write().remove(id);
                Err(Error::NodeClaimNotFound(
                    "getting instances from output, instance not found".to_owned(),
                ))
            }
            Err(error) if error.is_not_found() => {
                self.known.write().remove(id);
                Err(Error::NodeClaimNotFound(error.to_string()))
            }
            Err(error) => Err(failed("failed to describe ec2 instances", &error)),
        }
    }

    /// Every instance of this cluster that Karpenter launched.
    ///
    /// # Errors
    /// When EC2 cannot be asked.
    pub async fn list(&self) -> Result<Vec<Instance>, Error> {
        let filters = vec![
            filter("tag-key", vec![labels::NODEPOOL.to_owned()]),
            filter("tag-key", vec![labels::EC2NODECLASS.to_owned()]),
            filter(&format!("tag:{CLUSTER_NAME}"), vec![self.cluster.clone()]),
        ];
        let list =
            self.describe(filters).await.map_err(|e| failed("describing ec2 instances", &e))?;
        let found: HashMap<String, Instance> =
            list.iter().map(|i| (i.id.clone(), i.clone())).collect();
        let mut known = self.known.write();
        // EC2 may not list the instances of a zone that is impaired, although they run.
        known.retain(|id, i| found.contains_key(id) || self.in_shifted_zone(i));
        known.extend(found);
        Ok(list)
    }

    async fn describe(&self, filters: Vec<Filter>) -> Result<Vec<Instance>, AwsError> {
        let mut pages = self
            .clients
            .ec2
            .describe_instances()
            .set_filters(Some(filters))
            .filters(filter("instance-state-name", LIVE.map(str::to_owned).into()))
            .into_paginator()
            .page_size(1000)
            .send();
        let mut list = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| AwsError::new("DescribeInstances", &e))?;
            let found = page.reservations().iter().flat_map(|r| r.instances());
            list.extend(found.map(|i| Instance::of_ec2(i, self.options.reserved_capacity)));
        }
        Ok(list)
    }

    /// Asks for an instance's termination.
    ///
    /// # Errors
    /// [`Error::NodeClaimNotFound`] once it is gone.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        // Asked first because TerminateInstances also succeeds for an instance that is gone, while
        // the finalizer waits to hear that it is.
        let instance = self.get_fresh(id).await?;
        if self.in_shifted_zone(&instance) {
            return Err(self.shifted(&instance, "termination"));
        }
        // The NodeClaim is reconciled until the instance is gone: no need to ask for its
        // termination each time.
        if instance.state == "shutting-down" {
            return Ok(());
        }
        let outcome = self.terminations.request(id.to_owned()).await;
        match outcome {
            Ok(()) => Ok(()),
            Err(error) if error.is_not_found() => {
                self.known.write().remove(id);
                Err(Error::NodeClaimNotFound(error.to_string()))
            }
            Err(error) => {
                let zone_id = instance.zone_id.as_deref().unwrap_or_default();
                metrics::INSTANCE_TERMINATION_FAILURES
                    .with_label_values(&[&instance.zone, zone_id])
                    .inc();
                Err(failed("terminating instance", &error))
            }
        }
    }

    /// Whether an instance may be rebooted now.
    ///
    /// # Errors
    /// [`Error::NodeClaimNotFound`] when it is gone; an error that is tried again while work is kept away
    /// from its zone: what goes down there may not come back.
    pub async fn may_reboot(&self, id: &str) -> Result<(), Error> {
        let instance = self.get(id).await?;
        if self.in_shifted_zone(&instance) {
            return Err(self.shifted(&instance, "reboot"));
        }
        Ok(())
    }

    /// Reboots an instance, once for each `request`: EC2 takes no token for it.
    ///
    /// # Errors
    /// When EC2 refuses.
    pub async fn reboot(&self, id: &str, request: &str) -> Result<(), AwsError> {
        let request = request.to_owned();
        let call = || async {
            let answer = self.clients.ec2.reboot_instances().instance_ids(id).send().await;
            answer.map(drop).map_err(|e| AwsError::new("RebootInstances", &e))
        };
        self.reboots.get(&request, call).await
    }

    /// Adds tags to an instance, together with all others that get the same.
    ///
    /// # Errors
    /// [`Error::NodeClaimNotFound`] when it is gone.
    pub async fn tag(&self, id: &str, tags: &BTreeMap<String, String>) -> Result<(), TagError> {
        let known = self.known.read().get(id).cloned();
        if let Some(known) = known.filter(|i| self.in_shifted_zone(i)) {
            return Err(TagError::Cloud(self.shifted(&known, "tag creation")));
        }
        match self.taggings.request(Tag { id: id.to_owned(), tags: tags.clone() }).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_not_found() => {
                Err(TagError::Cloud(Error::NodeClaimNotFound(error.to_string())))
            }
            Err(error) => Err(TagError::Aws(error)),
        }
    }
}

fn failed(attempt: &str, error: &AwsError) -> Error {
    Error::Call(Detail::from(format!("{attempt}, {error}")).of_call(error.call()))
}

/// Why an instance was not tagged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TagError {
    /// The instance is gone, or in a zone that is left alone.
    #[error("{0}")]
    Cloud(Error),
    /// EC2 refused.
    #[error("tagging instance, {0}")]
    Aws(AwsError),
}
