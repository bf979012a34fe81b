//! Security groups of a node class.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cache::TtlCache;
use super::clients::Clients;
use super::errors::AwsError;
use super::select::{cache_key, filter, tag_filters};
use crate::api::v1::{EC2NodeClass, SecurityGroup};
use crate::clock::Clock;

/// Finds security groups.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    groups: TtlCache<String, Vec<SecurityGroup>>,
}

impl Provider {
    /// A provider with an empty cache.
    #[must_use]
    pub fn new(clients: Clients, clock: &Clock, refresh: Duration) -> Self {
        Self { clients, groups: TtlCache::new(clock.clone(), refresh) }
    }

    /// The security groups that a node class selects, by id.
    ///
    /// # Errors
    /// When EC2 cannot be asked.
    pub async fn list(&self, class: &EC2NodeClass) -> Result<Vec<SecurityGroup>, AwsError> {
        let key = cache_key(&class.metadata);
        if let Some(cached) = self.groups.get(&key) {
            return Ok(cached);
        }
        let terms = &class.spec.security_group_selector_terms;
        let mut queries: Vec<_> = terms
            .iter()
            .filter(|t| t.id.is_none() && t.name.is_none() && t.tags.is_some())
            .map(|t| tag_filters(t.tags.as_ref()))
            .collect();
        let ids: Vec<String> = terms.iter().filter_map(|t| t.id.clone()).collect();
        if !ids.is_empty() {
            // As a filter rather than by the call's own list of ids: an id that does not exist then
            // selects nothing, instead of failing the call for all.
            queries.push(vec![filter("group-id", ids)]);
        }
        let names: Vec<String> =
            terms.iter().filter(|t| t.id.is_none()).filter_map(|t| t.name.clone()).collect();
        if !names.is_empty() {
            queries.push(vec![filter("group-name", names)]);
        }
        // By id, since terms may select the same group, and sorted, so that the status does not
        // change with the order of EC2's answers.
        let mut found: BTreeMap<String, SecurityGroup> = BTreeMap::new();
        for filters in queries {
            let mut pages = self
                .clients
                .ec2
                .describe_security_groups()
                .set_filters(Some(filters))
                .into_paginator()
                .page_size(500)
                .send();
            while let Some(page) = pages.next().await {
                let page = page.map_err(|e| AwsError::new("DescribeSecurityGroups", &e))?;
                for group in page.security_groups() {
                    let id = group.group_id().unwrap_or_default().to_owned();
                    let name = group.group_name().map(str::to_owned);
                    found.insert(id.clone(), SecurityGroup { id, name });
                }
            }
        }
        let list: Vec<SecurityGroup> = found.into_values().collect();
        self.groups.set(key, list.clone());
        Ok(list)
    }
}
