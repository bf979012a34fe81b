//! Placement groups that node classes select.

use std::sync::Arc;
use std::time::Duration;

use super::cache::TtlCache;
use super::clients::Clients;
use super::errors::AwsError;
use super::permissions::{Feature, Permissions};
use super::select::filter;
use crate::api::v1::{EC2NodeClass, PlacementGroupSelector};
use crate::clock::Clock;

/// How long an answer counts as fresh.
const FRESH: Duration = Duration::from_secs(60);
/// How long an answer may stand in while EC2 cannot be asked.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// A placement group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlacementGroup {
    pub id: String,
    pub name: String,
    /// `cluster`, `partition` or `spread`.
    pub strategy: String,
    pub partition_count: i32,
    /// `rack` or `host`, for spread groups.
    pub spread_level: Option<String>,
}

/// Finds placement groups.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    permissions: Arc<Permissions>,
    looked_up: TtlCache<String, ()>,
    found: TtlCache<String, PlacementGroup>,
}

impl Provider {
    /// A provider with empty caches.
    #[must_use]
    pub fn new(clients: Clients, clock: &Clock, permissions: &Arc<Permissions>) -> Self {
        Self {
            clients,
            permissions: Arc::clone(permissions),
            looked_up: TtlCache::new(clock.clone(), FRESH),
            found: TtlCache::new(clock.clone(), STALE),
        }
    }

    /// The group that a node class selects; nothing when it selects none or there is none.
    ///
    /// # Errors
    /// When EC2 cannot be asked, or may not be; [`Provider::known`] still returns what was found
    /// before.
    pub async fn get(&self, class: &EC2NodeClass) -> Result<Option<PlacementGroup>, AwsError> {
        let Some(selector) = &class.spec.placement_group_selector else { return Ok(None) };
        let key = key_of(selector);
        if self.looked_up.get(&key).is_some() {
            return Ok(self.found.get(&key));
        }
        let call = self.describe(selector);
        let found = self.permissions.ask(Feature::PlacementGroups, call).await?;
        let found = found.ok_or_else(|| Feature::PlacementGroups.refusal())?;
        // Two caches: that there is no group is an answer too, and an answer that is no longer
        // fresh may still stand in when EC2 cannot be asked.
        self.looked_up.set(key.clone(), ());
        match &found {
            Some(group) => self.found.set(key, group.clone()),
            None => {
                self.found.remove(&key);
            }
        }
        Ok(found)
    }

    /// What is known of the group that a node class selects, without asking.
    #[must_use]
    pub fn known(&self, class: &EC2NodeClass) -> Option<PlacementGroup> {
        self.found.get(&key_of(class.spec.placement_group_selector.as_ref()?))
    }

    async fn describe(
        &self,
        selector: &PlacementGroupSelector,
    ) -> Result<Option<PlacementGroup>, AwsError> {
        let mut request = self
            .clients
            .ec2
            .describe_placement_groups()
            .filters(filter("state", vec!["available".to_owned()]));
        request = match (&selector.id, &selector.name) {
            (Some(id), _) => request.group_ids(id),
            (None, Some(name)) => request.group_names(name),
            (None, None) => return Ok(None),
        };
        let answer =
            request.send().await.map_err(|e| AwsError::new("DescribePlacementGroups", &e))?;
        Ok(answer.placement_groups().first().map(|group| PlacementGroup {
            id: group.group_id().unwrap_or_default().to_owned(),
            name: group.group_name().unwrap_or_default().to_owned(),
            strategy: group.strategy().map(|s| s.as_str().to_owned()).unwrap_or_default(),
            partition_count: group.partition_count().unwrap_or(0),
            spread_level: group.spread_level().map(|l| l.as_str().to_owned()),
        }))
    }
}

/// The name or id that a selector asks for; the id wins.
#[must_use]
pub fn wanted(selector: &PlacementGroupSelector) -> &str {
    selector.id.as_deref().or(selector.name.as_deref()).unwrap_or_default()
}

fn key_of(selector: &PlacementGroupSelector) -> String {
    let kind = if selector.id.is_some() { "id" } else { "name" };
    format!("{kind}/{}", wanted(selector))
}
