//! Calls about many instances at once, answered for each.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures::future::join_all;

use super::record::Instance;
use crate::cloud::aws::clients::Clients;
use crate::cloud::aws::errors::AwsError;
use crate::cloud::aws::select::filter;
use crate::cloud::aws::tags::to_ec2;

/// States of instances that are not gone.
pub(super) const LIVE: [&str; 5] = ["pending", "running", "stopping", "stopped", "shutting-down"];

/// Tags for an instance.
#[derive(Clone, Debug)]
pub(super) struct Tag {
    pub(super) id: String,
    pub(super) tags: BTreeMap<String, String>,
}

fn unique(ids: &[String]) -> Vec<String> {
    let mut seen = HashSet::new();
    ids.iter().filter(|id| seen.insert(id.as_str())).cloned().collect()
}

async fn describe_some(
    clients: &Clients,
    reserved_capacity: bool,
    ids: Vec<String>,
) -> Result<HashMap<String, Instance>, AwsError> {
    let answer = clients
        .ec2
        .describe_instances()
        .set_instance_ids(Some(ids))
        // EC2 shows terminated instances for about an hour.
        .filters(filter("instance-state-name", LIVE.map(str::to_owned).into()))
        .send()
        .await
        .map_err(|e| AwsError::new("DescribeInstances", &e))?;
    let found = answer.reservations().iter().flat_map(|r| r.instances());
    Ok(found.map(|i| Instance::of_ec2(i, reserved_capacity)).map(|i| (i.id.clone(), i)).collect())
}

/// Describes instances; those missing in the common answer are asked for one by one.
pub(super) async fn describe(
    clients: Clients,
    reserved_capacity: bool,
    ids: Vec<String>,
) -> Vec<Result<Option<Instance>, AwsError>> {
    let wanted = unique(&ids);
    let all = describe_some(&clients, reserved_capacity, wanted.clone()).await;
    let mut found: HashMap<String, Result<Option<Instance>, AwsError>> = match all {
        Ok(list) => list.into_iter().map(|(id, i)| (id, Ok(Some(i)))).collect(),
        Err(error) if wanted.len() == 1 => {
            return ids.iter().map(|_| Err(error.clone())).collect();
        }
        Err(_) => HashMap::new(),
    };
    // One unknown id fails the whole call, so each is asked for by itself then.
    let missing: Vec<String> =
        wanted.iter().filter(|id| !found.contains_key(*id)).cloned().collect();
    if wanted.len() > 1 {
        let single = missing.iter().map(|id| async {
            let outcome = describe_some(&clients, reserved_capacity, vec![id.clone()]).await;
            (id.clone(), outcome.map(|mut list| list.remove(id)))
        });
        found.extend(join_all(single).await);
    }
    ids.iter().map(|id| found.get(id).cloned().unwrap_or(Ok(None))).collect()
}

async fn terminate_some(clients: &Clients, ids: Vec<String>) -> Result<HashSet<String>, AwsError> {
    let answer = clients
        .ec2
        .terminate_instances()
        .set_instance_ids(Some(ids))
        .send()
        .await
        .map_err(|e| AwsError::new("TerminateInstances", &e))?;
    let ending = answer.terminating_instances().iter().filter(|i| {
        let state = i.current_state().and_then(|s| s.name()).map(|n| n.as_str());
        matches!(state, Some("shutting-down" | "terminated"))
    });
    Ok(ending.filter_map(|i| i.instance_id().map(str::to_owned)).collect())
}

/// Terminates instances; those that the common call does not end are ended one by one.
pub(super) async fn terminate(clients: Clients, ids: Vec<String>) -> Vec<Result<(), AwsError>> {
    let wanted = unique(&ids);
    let ended = terminate_some(&clients, wanted.clone()).await;
    if let (Err(error), [_]) = (&ended, wanted.as_slice()) {
        return ids.iter().map(|_| Err(error.clone())).collect();
    }
    let ended = ended.unwrap_or_default();
    // One instance that cannot be terminated fails the call for all of them.
    let missing = wanted.iter().filter(|id| !ended.contains(*id));
    let single = missing.map(|id| async {
        let outcome = terminate_some(&clients, vec![id.clone()]).await;
        (id.clone(), outcome.map(drop))
    });
    let rest: HashMap<String, Result<(), AwsError>> = join_all(single).await.into_iter().collect();
    ids.iter().map(|id| rest.get(id).cloned().unwrap_or(Ok(()))).collect()
}

/// Tags instances that get the same tags; where one of them is at fault, the others get theirs.
pub(super) async fn tag(clients: Clients, batch: Vec<Tag>) -> Vec<Result<(), AwsError>> {
    let Some(tags) = batch.first().map(|t| to_ec2(&t.tags)) else { return Vec::new() };
    let send = |ids: Vec<String>| {
        clients.ec2.create_tags().set_resources(Some(ids)).set_tags(Some(tags.clone())).send()
    };
    let ids: Vec<String> = batch.iter().map(|t| t.id.clone()).collect();
    let all = send(unique(&ids)).await.map(drop).map_err(|e| AwsError::new("CreateTags", &e));
    match all {
        // Other errors, such as a missing permission, concern all of them alike.
        Err(error) if error.is_not_found() && ids.len() > 1 => {
            let single = ids.iter().map(|id| async {
                send(vec![id.clone()]).await.map(drop).map_err(|e| AwsError::new("CreateTags", &e))
            });
            join_all(single).await
        }
        outcome => ids.iter().map(|_| outcome.clone()).collect(),
    }
}
