//! One launch: what is asked for, asked once, and found again when the answer was lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::Resource as _;
use kube::api::ListParams;

use super::fleet::{self, Ask, Content, Market};
use super::identity::{self, Claimed, Member};
use super::record::Instance;
use super::{Provider, Tried};
use crate::api::v1::{EC2NodeClass, NodeClaim};
use crate::api::{annotations, labels};
use crate::cloud::aws::errors::{self, AwsError};
use crate::cloud::aws::filters;
use crate::cloud::aws::launchtemplate::{self, LaunchTemplate, TemplateError, tenancy};
use crate::cloud::aws::placementgroup::PlacementGroup;
use crate::cloud::aws::subnet::Chosen;
use crate::cloud::aws::tags;
use crate::cloud::{Detail, Error};
use crate::operator::readable::Readable;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::requirements::{Requirement, Requirements};

/// How old a list of instances may be that lost launches are looked for in.
pub(super) const FRESH: Duration = Duration::from_secs(2);
/// Launches of an earlier process are not given up before EC2 had this long to show them.
const SETTLED: Duration = Duration::from_secs(5);
/// What is remembered of a claim's launches is forgotten after this long without another.
const FORGET: Duration = Duration::from_secs(3600);

/// One launch, worked out.
pub(super) struct Attempt<'a> {
    pub(super) claim: &'a NodeClaim,
    pub(super) class: &'a EC2NodeClass,
    pub(super) capacity_type: &'static str,
    pub(super) tenancy: &'static str,
    /// The claim's requirements, narrowed to the capacity type.
    pub(super) requirements: Requirements,
    pub(super) types: Vec<Arc<InstanceType>>,
    pub(super) templates: Vec<LaunchTemplate>,
    pub(super) subnets: BTreeMap<String, Chosen>,
    pub(super) placement: Option<PlacementGroup>,
    /// The partition of the placement group that the claim asks for.
    pub(super) partition: Option<String>,
    pub(super) tags: BTreeMap<String, String>,
}

impl Attempt<'_> {
    /// Whether the claim's pods ask for a resource.
    pub(super) fn wants(&self, resource: &str) -> bool {
        let requests = self.claim.spec.resources.as_ref().and_then(|r| r.requests.as_ref());
        requests.is_some_and(|r| r.contains_key(resource))
    }

    /// Whether the node class says which interfaces there are.
    pub(super) fn has_own_interfaces(&self) -> bool {
        self.class.spec.network_interfaces.as_ref().is_some_and(|l| !l.is_empty())
    }

    fn content(&self) -> Content {
        let marks = self.claim.metadata.annotations.as_ref();
        let mark = |key: &str| marks.and_then(|a| a.get(key)).map(String::as_str);
        let relaxed = mark(annotations::MIN_VALUES_RELAXED) == Some("true");
        Content {
            market: Market::of(self.capacity_type, &self.templates),
            prioritized: mark(annotations::PRICE_OVERLAY_APPLIED).is_some(),
            context: self.class.spec.context.clone().filter(|_| !relaxed),
            configs: fleet::configs(&self.templates, &self.requirements, &self.subnets),
            tags: self.tags.clone(),
        }
    }
}

/// Why an attempt came to nothing.
enum Failure {
    /// A launch template vanished between its making and its use.
    TemplateGone,
    /// The token was used with other parameters.
    TokenUsed(AwsError),
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Other(error) => error,
            Failure::TokenUsed(error) => create_error("Error creating fleet request", &error),
            Failure::TemplateGone => Self::Create {
                reason: "LaunchTemplateNotFound".to_owned(),
                condition: "Error creating fleet request: Launch template used for instance launch wasn't found".to_owned(),
                message: "creating instance, launch template not found".into(),
            },
        }
    }
}

impl Provider {
    /// Launches the claim's instance, or returns the one that an earlier attempt launched.
    ///
    /// # Errors
    /// By class: no capacity, node class not ready, launch failed.
    pub async fn launch(
        &self,
        class: &EC2NodeClass,
        claim: &NodeClaim,
        types: &[Arc<InstanceType>],
    ) -> Result<Instance, Error> {
        let uid = claim.metadata.uid.clone().unwrap_or_default();
        let mut tried = self.tried(claim, &uid);
        if tried.unsure {
            if let Some(found) = self.recover(claim, &uid).await? {
                self.forget(&uid);
                return Ok(found);
            }
            tried.unsure = false;
            self.remember(&uid, &tried);
        }
        let tags = tags::of(class, claim, &self.cluster)
            .map_err(|e| Error::NodeClassNotReady(e.to_string()))?;
        let mut outcome = self.attempt(class, claim, types, &tags, &mut tried).await;
        // Once only: somebody who keeps removing templates must not keep this loop going.
        if matches!(outcome, Err(Failure::TemplateGone)) {
            outcome = self.attempt(class, claim, types, &tags, &mut tried).await;
        }
        if matches!(outcome, Err(Failure::TokenUsed(_))) {
            if let Some(found) = self.recover(claim, &uid).await? {
                self.forget(&uid);
                return Ok(found);
            }
            // Whatever that launch was for, it left nothing: this one is another.
            tried.generation += 1;
            outcome = self.attempt(class, claim, types, &tags, &mut tried).await;
        }
        match &outcome {
            // After insufficient capacity the NodeClaim is deleted, so there is no next attempt.
            Ok(_) | Err(Failure::Other(Error::InsufficientCapacity(_))) => self.forget(&uid),
            Err(_) => self.remember(&uid, &tried),
        }
        outcome.map_err(Into::into)
    }

    async fn attempt(
        &self,
        class: &EC2NodeClass,
        claim: &NodeClaim,
        types: &[Arc<InstanceType>],
        tags: &BTreeMap<String, String>,
        tried: &mut Tried,
    ) -> Result<Instance, Failure> {
        let attempt = self.prepare(class, claim, types, tags).await?;
        let content = attempt.content();
        if content.configs.is_empty() {
            self.subnets.release_unused(attempt.subnets.values(), &[]);
            let text = "no capacity offerings are currently available given the constraints";
            return Err(Error::Create {
                reason: "LaunchFailed".to_owned(),
                condition: format!("Error getting launch template configs: {text}"),
                message: format!("getting launch template configs, {text}").into(),
            }
            .into());
        }
        let meta = &claim.metadata;
        let member = Member {
            uid: meta.uid.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            generation: tried.generation,
        };
        // Until the answer is here, nobody knows; a process that dies now knows nothing either.
        self.remember(&member.uid, &Tried { unsure: true, ..tried.clone() });
        let answer = self.fleets.request(Ask { content: Arc::new(content), member }).await;
        let used: Vec<String> = answer
            .iter()
            .filter_map(|a| a.placed.as_ref())
            .map(|p| p.place.subnet.clone())
            .collect();
        self.subnets.release_unused(attempt.subnets.values(), &used);
        match answer {
            Ok(answer) => {
                tried.generation += u32::from(answer.placed.is_none());
                let launched = self.read_answer(&attempt, &answer)?;
                // What is asked about it from now on needs no call.
                self.known.write().insert(launched.id.clone(), launched.clone());
                Ok(launched)
            }
            Err(error) if error.is_launch_template_not_found() => {
                tried.generation += 1;
                self.templates.invalidate(&attempt.templates);
                Err(Failure::TemplateGone)
            }
            Err(error) if error.is_token_mismatch() => Err(Failure::TokenUsed(error)),
            Err(error) => {
                tried.unsure = error.is_server_fault() || error.code == "NoAnswer";
                tried.generation += u32::from(!tried.unsure);
                Err(create_error("Error creating fleet request", &error).into())
            }
        }
    }

    /// Chooses types, capacity type and subnets, and makes the launch templates.
    async fn prepare<'a>(
        &self,
        class: &'a EC2NodeClass,
        claim: &'a NodeClaim,
        types: &[Arc<InstanceType>],
        tags: &BTreeMap<String, String>,
    ) -> Result<Attempt<'a>, Error> {
        let mut requirements = Requirements::from_api(&claim.spec.requirements);
        let types = filters::for_launch(types, claim, self.options.best_effort_min_values)?;
        let capacity_type = filters::capacity_type(&types, &requirements);
        warn_if_inflexible(&types, capacity_type, &requirements);
        let tenancy = tenancy(&requirements);
        // While EC2 cannot be asked, what was known before has to do.
        let placement = match self.placement_groups.get(class).await {
            Ok(group) => group,
            Err(_) => self.placement_groups.known(class),
        };
        let wanted = launchtemplate::Launch {
            class,
            claim,
            types: &types,
            capacity_type,
            tenancy,
            tags,
            placement: placement.as_ref(),
        };
        let partition = Some(wanted.partition()).filter(|n| *n > 0).map(|n| n.to_string());
        if class.status.as_ref().is_none_or(|s| s.subnets.is_empty()) {
            return Err(Error::Create {
                reason: "SubnetResolutionFailed".to_owned(),
                condition: "Error getting subnets".to_owned(),
                message: "getting subnets, no subnets matched selector".into(),
            });
        }
        // Before the subnets are chosen: addresses that are booked would stay so when this fails.
        let templates = self.templates.ensure_all(&wanted).await.map_err(template_error)?;
        let subnets = self.subnets.zonal_subnets_for_launch(class, &types, capacity_type);
        requirements.add(Requirement::is(labels::CAPACITY_TYPE, capacity_type));
        Ok(Attempt {
            claim,
            class,
            capacity_type,
            tenancy,
            requirements,
            types,
            templates,
            subnets,
            placement,
            partition,
            tags: tags.clone(),
        })
    }

    /// What is known of earlier launches of a claim: one from before this process is unsure.
    fn tried(&self, claim: &NodeClaim, uid: &str) -> Tried {
        if let Some(known) = self.tries.lock().get(uid) {
            return known.clone();
        }
        let made = claim.metadata.creation_timestamp.as_ref().map(|t| t.0);
        // API servers keep whole seconds.
        let unsure = made.is_none_or(|made| made <= self.started);
        Tried { generation: 0, unsure, at: self.clock.now() }
    }

    fn remember(&self, uid: &str, tried: &Tried) {
        let now = self.clock.now();
        let mut tries = self.tries.lock();
        // Claims that are deleted while a launch fails are never forgotten otherwise.
        if tries.len() > 1000 {
            tries.retain(|_, t| now.duration_since(t.at).unsigned_abs() < FORGET);
        }
        tries.insert(uid.to_owned(), Tried { at: now, ..tried.clone() });
    }

    fn forget(&self, uid: &str) {
        self.tries.lock().remove(uid);
    }

    /// The instance of a launch whose answer is not known, if there is one.
    async fn recover(&self, claim: &NodeClaim, uid: &str) -> Result<Option<Instance>, Error> {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        // EC2 shows new instances a little late.
        let age = self.clock.since(self.started);
        if age < SETTLED {
            tokio::time::sleep(SETTLED - age).await;
        }
        let instances = self.lately_listed().await?;
        if !instances.iter().any(|i| identity::is_for(i, name, uid)) {
            return Ok(None);
        }
        let claims = self.claims().await?;
        let found = identity::find(name, uid, &instances, &claims).cloned();
        if let Some(found) = &found {
            tracing::info!(
                "instance-id" = found.id,
                "found the instance of an earlier launch of the nodeclaim"
            );
        }
        Ok(found)
    }

    /// One list for all claims that look for their instance at the same time.
    async fn lately_listed(&self) -> Result<Arc<[Instance]>, Error> {
        self.listed.get(&(), || async { Ok(self.list().await?.into()) }).await
    }

    async fn claims(&self) -> Result<Vec<Claimed>, Error> {
        let list = self
            .kube
            .list(&ListParams::default())
            .await
            .map_err(|e| Error::Other(format!("listing nodeclaims, {e}")))?;
        let claimed = |claim: Readable<NodeClaim>| {
            let short = identity::short(claim.meta().uid.as_deref().unwrap_or_default());
            let provider_id = match claim {
                Readable::Object(claim) => claim.status.and_then(|s| s.provider_id),
                Readable::Unreadable(found) => {
                    found.raw["status"]["providerID"].as_str().map(str::to_owned)
                }
            };
            Claimed { short, provider_id }
        };
        Ok(list.into_iter().map(claimed).collect())
    }
}

/// Falling back to on-demand with few types to choose from is likely to fail again.
fn warn_if_inflexible(
    types: &[Arc<InstanceType>],
    capacity_type: &str,
    requirements: &Requirements,
) {
    let spot_allowed =
        requirements.get(labels::CAPACITY_TYPE).is_none_or(|r| r.has(labels::CAPACITY_SPOT));
    if capacity_type == labels::CAPACITY_ON_DEMAND
        && spot_allowed
        && types.len() < filters::FLEXIBLE
    {
        let (least, count) = (filters::FLEXIBLE, types.len());
        tracing::error!(
            "error" = format!(
                "at least {least} instance types are recommended when flexible to spot but requesting on-demand, the current provisioning request only has {count} instance type options"
            ),
            "failed while checking on-demand fallback"
        );
    }
}

fn create_error(prefix: &str, error: &AwsError) -> Error {
    let (reason, condition) = errors::launch_failure(&error.to_string());
    Error::Create {
        reason: reason.to_owned(),
        condition: format!("{prefix}: {condition}"),
        message: Detail::from(format!("creating instance, {error}")).of_call(error.call()),
    }
}

fn template_error(error: TemplateError) -> Error {
    let text = error.to_string();
    let mut message = Detail::from(format!("getting launch template configs, {text}"));
    match error {
        TemplateError::NotReady(_) => Error::NodeClassNotReady(text),
        TemplateError::Unsuited(_) | TemplateError::UserData(_) | TemplateError::Aws { .. } => {
            let (reason, condition) = errors::launch_failure(&text);
            if let TemplateError::Aws { error, .. } = &error {
                message = message.of_call(error.call());
            }
            Error::Create {
                reason: reason.to_owned(),
                condition: format!("Error getting launch template configs: {condition}"),
                message,
            }
        }
    }
}

#[cfg(test)]
mod tests;
