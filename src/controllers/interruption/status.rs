//! EC2's own checks and plans for instances, asked for every minute, with or without a queue.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_ec2::types::{EventCode, InstanceStatus as Found, StatusName, StatusType};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::action;
use super::message::Kind;
use crate::cloud::aws::AwsProvider;
use crate::cloud::aws::errors::AwsError;
use crate::cloud::aws::permissions::Feature;
use crate::cloud::aws::select::filter;
use crate::controllers::aws::every;
use crate::controllers::{Context, Error};
use crate::operator::{logging, metrics};

const PERIOD: Duration = Duration::from_secs(60);
/// A check has to fail for so long before anything is done about it.
const TOLERATION: Duration = Duration::from_secs(120);
/// Plans that end, or at least interrupt, an instance.
const EVENTS: &[&str] = &[
    "instance-reboot",
    "system-reboot",
    "system-maintenance",
    "instance-retirement",
    "instance-stop",
];
/// How EC2 begins the text of a plan that is over.
const OVER: &[&str] = &["[Completed]", "[Canceled]"];

/// Instances and kinds that were logged already.
type Logged = Mutex<HashSet<(String, Kind)>>;

pub(super) fn start(ctx: &Arc<Context>, aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    let (ctx, aws, logged) = (Arc::clone(ctx), Arc::clone(aws), Arc::new(Logged::default()));
    every(tasks, "interruption.instancestatus", PERIOD, move || {
        let (ctx, aws, logged) = (Arc::clone(&ctx), Arc::clone(&aws), Arc::clone(&logged));
        async move { look(&ctx, &aws, &logged).await }
    });
}

async fn look(ctx: &Context, aws: &AwsProvider, logged: &Logged) -> Result<(), Error> {
    if !ctx.cluster.listed() {
        return Ok(());
    }
    let found = aws.permissions.ask(Feature::InstanceStatus, unhealthy(aws)).await?;
    let Some(found) = found else { return Ok(()) };
    let claims = ctx.cluster.claims();
    let own: HashMap<&str, &str> = claims
        .iter()
        .filter_map(|c| Some((action::instance_of(c)?, c.metadata.name.as_deref()?)))
        .collect();
    let mut now_logged = HashSet::new();
    let mut failure = None;
    for (id, status) in &found {
        let Some(claim) = own.get(id.as_str()) else { continue };
        for kind in kinds(status, ctx.clock.now()) {
            let key = (id.clone(), kind);
            if !logged.lock().contains(&key) {
                tracing::info!(
                    "NodeClaim" = %logging::obj(claim),
                    "instance-id" = id,
                    "category" = category(kind),
                    "detected unhealthy instance owned by cluster"
                );
                metrics::INTERRUPTION_UNHEALTHY.with_label_values(&[category(kind)]).inc();
            }
            now_logged.insert(key);
            if let Err(error) = action::take(ctx, aws, kind, id).await {
                failure = Some(error);
            }
        }
    }
    *logged.lock() = now_logged;
    failure.map_or(Ok(()), Err)
}

/// Instances that fail a check or have something planned, by id.
async fn unhealthy(aws: &AwsProvider) -> Result<BTreeMap<String, Found>, AwsError> {
    let impaired = || vec!["impaired".to_owned()];
    let planned = EVENTS.iter().map(|e| (*e).to_owned()).collect();
    let (instance, system, event) = tokio::try_join!(
        describe(aws, "instance-status.status", impaired()),
        describe(aws, "system-status.status", impaired()),
        describe(aws, "event.code", planned),
    )?;
    let all = instance.into_iter().chain(system).chain(event);
    Ok(all.filter_map(|status| Some((status.instance_id.clone()?, status))).collect())
}

async fn describe(
    aws: &AwsProvider,
    name: &str,
    values: Vec<String>,
) -> Result<Vec<Found>, AwsError> {
    let request = aws.clients.ec2.describe_instance_status().filters(filter(name, values));
    let mut pages = request.into_paginator().send();
    let mut list = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| AwsError::new("DescribeInstanceStatus", &e))?;
        list.extend(page.instance_statuses.unwrap_or_default());
    }
    Ok(list)
}

/// What is wrong with an instance.
fn kinds(status: &Found, now: Timestamp) -> Vec<Kind> {
    let mut kinds = Vec::new();
    for (summary, kind) in [
        (status.instance_status(), Kind::InstanceStatus),
        (status.system_status(), Kind::SystemStatus),
    ] {
        let failing = summary.is_some_and(|summary| {
            summary.details().iter().any(|check| {
                let since = check.impaired_since().map(|t| t.secs());
                let since = since.and_then(|secs| Timestamp::from_second(secs).ok());
                check.name() == Some(&StatusName::Reachability)
                    && check.status() == Some(&StatusType::Failed)
                    && since.is_some_and(|since| now >= since + TOLERATION)
            })
        });
        if failing {
            kinds.push(kind);
        }
    }
    let planned = status.events().iter().any(|event| {
        let text = event.description().unwrap_or_default();
        event.code().map(EventCode::as_str).is_some_and(|code| EVENTS.contains(&code))
            && !OVER.iter().any(|over| text.starts_with(over))
    });
    if planned {
        kinds.push(Kind::EventStatus);
    }
    kinds
}

fn category(kind: Kind) -> &'static str {
    match kind {
        Kind::InstanceStatus => "InstanceStatus",
        Kind::SystemStatus => "SystemStatus",
        _ => "EventStatus",
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{InstanceStatusDetails, InstanceStatusEvent, InstanceStatusSummary};
    use aws_smithy_types::DateTime;

    use super::*;

    fn failing(since: i64) -> InstanceStatusSummary {
        let check = InstanceStatusDetails::builder()
            .name(StatusName::Reachability)
            .status(StatusType::Failed)
            .impaired_since(DateTime::from_secs(since));
        InstanceStatusSummary::builder().details(check.build()).build()
    }

    #[test]
    fn a_failing_check_is_tolerated_for_two_minutes() {
        let status = Found::builder().instance_status(failing(1000)).build();
        let at = |secs| kinds(&status, Timestamp::from_second(secs).unwrap());
        assert!(at(1119).is_empty());
        assert_eq!(at(1120), [Kind::InstanceStatus]);
        let both = Found::builder().instance_status(failing(0)).system_status(failing(0)).build();
        let now = Timestamp::from_second(1000).unwrap();
        assert_eq!(kinds(&both, now), [Kind::InstanceStatus, Kind::SystemStatus]);
    }

    #[test]
    fn plans_count_at_once_until_they_are_over() {
        let planned = |code: &str, text: &str| {
            let event = InstanceStatusEvent::builder().code(code.into()).description(text);
            let status = Found::builder().events(event.build()).build();
            kinds(&status, Timestamp::UNIX_EPOCH)
        };
        assert_eq!(planned("instance-retirement", "soon"), [Kind::EventStatus]);
        assert!(planned("instance-retirement", "[Completed] soon").is_empty());
        assert!(planned("instance-reboot", "[Canceled] soon").is_empty());
        assert!(planned("something-else", "soon").is_empty());
    }
}
