//! Whether an EC2NodeClass whose selectors found everything can really be launched from.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::{Error, Outcome};
use super::{Controller, status_of};
use crate::api::hash::fnv1;
use crate::api::v1::{EC2NodeClass, NodeClaim, NodeClassReference};
use crate::api::{annotations, conditions, labels};
use crate::clock::Clock;
use crate::cloud::aws::ami::AmiFamily;
use crate::cloud::aws::cache::TtlCache;
use crate::cloud::aws::nodeclass::{self, Failure};
use crate::cloud::aws::{kubelet, tags};

/// A class is looked at again after this long.
pub(super) const AGAIN: Duration = Duration::from_secs(600);
/// How long the outcome of dry runs counts.
const VERDICT_TTL: Duration = Duration::from_secs(30 * 60);
/// Conditions without which there is nothing to validate.
const NEEDED: &[&str] = &[
    conditions::AMIS_READY,
    conditions::INSTANCE_PROFILE_READY,
    conditions::SECURITY_GROUPS_READY,
    conditions::SUBNETS_READY,
];

/// What dry runs said about each state of each class.
pub(super) struct Verdicts(TtlCache<(String, u64), Option<Failure>>);

impl Verdicts {
    pub(super) fn new(clock: &Clock) -> Self {
        Self(TtlCache::new(clock.clone(), VERDICT_TTL))
    }

    /// Forgets everything about a class.
    pub(super) fn forget(&self, class: &EC2NodeClass) {
        let name = class.metadata.name.as_deref().unwrap_or_default();
        for (key, _) in self.0.entries().into_iter().filter(|(key, _)| key.0 == name) {
            self.0.remove(&key);
        }
    }
}

impl Controller {
    /// Sets `ValidationSucceeded`; the first thing that is wrong decides.
    pub(super) async fn validate(&self, class: &mut EC2NodeClass) -> Outcome {
        let kind = conditions::VALIDATION_SUCCEEDED;
        if AmiFamily::of(class) == AmiFamily::Al2023
            && let Err(error) = self.aws.launch_templates.resolve_cidr().await
        {
            // An outage says nothing about the class.
            if !error.is_server_fault() && !error.is_rate_limited() {
                let mut message = "Failed to detect the cluster CIDR".to_owned();
                if error.is_unauthorized() {
                    message = format!("{message}: {}", error.denial());
                }
                self.set(class, kind, conditions::FALSE, "ClusterCIDRResolutionFailed", &message);
            }
            return Err(Error::Other(format!("failed to detect the cluster CIDR, {error}")));
        }
        if let Some((reason, message)) = nodeclass::failure(class, self.ctx.settings.aws_gates) {
            self.set(class, kind, conditions::FALSE, reason, &message);
            if nodeclass::QUIET.contains(&reason) {
                return Ok(None);
            }
            return Ok(self.terminal(&format!("validating spec, {message}")));
        }
        if let Some(state) = missing(class) {
            let message = "Awaiting AMI, Instance Profile, Security Group, and Subnet resolution";
            self.set(class, kind, state, "DependenciesNotReady", message);
            return Ok(Some(AGAIN));
        }
        if let Some(outcome) = self.evaluate_expressions(class) {
            return outcome;
        }
        let claim = empty_claim(class);
        let tags = match tags::of(class, &claim, &self.ctx.settings.cluster_name) {
            Ok(tags) => tags,
            Err(error) => {
                let text = error.to_string();
                self.set(class, kind, conditions::FALSE, "TagValidationFailed", &text);
                return Ok(self.terminal(&format!("validating tags, {text}")));
            }
        };
        let key = verdict_key(class, &tags);
        if let Some(verdict) = self.verdicts.0.get(&key) {
            self.apply_verdict(class, verdict.as_ref());
            return Ok(Some(AGAIN));
        }
        if !self.ctx.settings.disable_dry_run {
            match self.dry_run(class, &claim, &tags).await {
                Ok(()) => {}
                Err(super::dryrun::Stop::Verdict(failure)) => {
                    self.apply_verdict(class, Some(&failure));
                    self.verdicts.0.set(key, Some(failure));
                    return Ok(Some(AGAIN));
                }
                Err(super::dryrun::Stop::Condition((reason, message), again)) => {
                    self.set(class, kind, conditions::FALSE, reason, &message);
                    return Ok(again);
                }
                Err(super::dryrun::Stop::Again(delay)) => return Ok(Some(delay)),
                Err(super::dryrun::Stop::Error(error)) => return Err(Error::Other(error)),
            }
        }
        self.verdicts.0.set(key, None);
        self.apply_verdict(class, None);
        Ok(Some(AGAIN))
    }

    /// Tries the class's kubelet expressions on every known type; ends the validation where they
    /// fail, or where there is no type to try them on yet.
    fn evaluate_expressions(&self, class: &mut EC2NodeClass) -> Option<Outcome> {
        if kubelet::expressions(class).is_empty() {
            return None;
        }
        let text = match self.aws.instance_types.failing_expression(class) {
            Ok(None) => return None,
            Ok(Some(text)) => text,
            Err(_) => return Some(Ok(Some(Duration::from_secs(5)))),
        };
        let kind = conditions::VALIDATION_SUCCEEDED;
        let reason = "KubeletExpressionEvaluationFailed";
        self.set(class, kind, conditions::FALSE, reason, &text);
        Some(Ok(self.terminal(&format!("evaluating kubelet expressions, {text}"))))
    }

    fn apply_verdict(&self, class: &mut EC2NodeClass, verdict: Option<&Failure>) {
        let kind = conditions::VALIDATION_SUCCEEDED;
        match verdict {
            None => self.set_true(class, kind),
            Some((reason, message)) => self.set(class, kind, conditions::FALSE, reason, message),
        }
    }
}

/// The status of the condition while something is still missing.
fn missing(class: &mut EC2NodeClass) -> Option<&'static str> {
    let list = &status_of(class).conditions;
    if NEEDED.iter().any(|k| conditions::is_false(list, k)) {
        Some(conditions::FALSE)
    } else if NEEDED.iter().any(|k| !conditions::is_true(list, k)) {
        Some(conditions::UNKNOWN)
    } else {
        None
    }
}

/// The claim that dry runs are made for: it only names its class.
fn empty_claim(class: &EC2NodeClass) -> NodeClaim {
    let mut claim = NodeClaim::default();
    claim.spec.node_class_ref = NodeClassReference {
        group: labels::AWS_GROUP.to_owned(),
        kind: "EC2NodeClass".to_owned(),
        name: class.metadata.name.clone().unwrap_or_default(),
    };
    claim
}

/// What a verdict depends on: everything that goes into a launch.
fn verdict_key(class: &EC2NodeClass, tags: &BTreeMap<String, String>) -> (String, u64) {
    let mut status = class.status.clone().unwrap_or_default();
    status.subnets.sort_by(|a, b| a.id.cmp(&b.id));
    let mut marks = class.metadata.annotations.clone().unwrap_or_default();
    // Written by Karpenter itself, and made of what is in the key already.
    marks.remove(annotations::EC2NODECLASS_HASH);
    marks.remove(annotations::EC2NODECLASS_HASH_VERSION);
    let parts: Value = json!([
        status.subnets,
        status.security_groups,
        status.amis,
        status.instance_profile,
        class.spec,
        marks,
        tags,
    ]);
    let name = class.metadata.name.clone().unwrap_or_default();
    (name, fnv1(parts.to_string().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(spec: Value) -> EC2NodeClass {
        EC2NodeClass::new("c", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn a_verdict_holds_for_what_it_was_made_from() {
        let tags = BTreeMap::new();
        let base = class(json!({"role": "a"}));
        let same = |other: &EC2NodeClass| verdict_key(&base, &tags) == verdict_key(other, &tags);
        let mut stamped = base.clone();
        stamped.metadata.annotations =
            Some([(annotations::EC2NODECLASS_HASH.to_owned(), "1".to_owned())].into());
        assert!(same(&stamped));
        stamped.metadata.annotations = Some([("mine".to_owned(), "1".to_owned())].into());
        assert!(!same(&stamped));
        assert!(!same(&class(json!({"role": "b"}))));
    }
}
