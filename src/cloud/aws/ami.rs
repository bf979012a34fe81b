//! The images that a node class selects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_ec2::types::{Filter, Image};

use super::clients::Clients;
use super::errors::AwsError;
use super::flight::Memo;
use super::select::{cache_key, filter, tag_filters};
use super::ssm::{self, Kind, Parameter};
use crate::api::v1::{Ami, AmiSelectorTerm, EC2NodeClass};
use crate::clock::Clock;

mod choose;
mod family;
mod parameters;

pub use self::family::{AmiFamily, Features};
pub use self::parameters::{Variant, ssm_parameters};

/// EKS documentation on why AL2 images ended; part of the error message.
const AL2_DEPRECATION: &str =
    "https://docs.aws.amazon.com/eks/latest/userguide/eks-ami-deprecation-faqs.html";

/// Why a node class's images could not be found.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AmiError {
    /// The alias cannot be used with this Kubernetes version.
    #[error("{0}")]
    UnsupportedAlias(String),
    /// The alias names a release that has no image.
    #[error("getting amis, failed to discover any AMIs for alias (alias={0})")]
    NoRelease(String),
    /// AWS cannot be asked.
    #[error("getting amis, {attempt}{error}{context}")]
    Aws { attempt: &'static str, error: Box<AwsError>, context: String },
}

impl AmiError {
    fn describing(error: AwsError) -> Self {
        Self::Aws { attempt: "", error: Box::new(error), context: String::new() }
    }

    fn parameter(attempt: &'static str, error: AwsError, name: &str) -> Self {
        Self::Aws { attempt, error: Box::new(error), context: format!(" (parameter={name})") }
    }
}

/// Finds images.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    clock: Clock,
    parameters: Arc<ssm::Provider>,
    images: Memo<String, Vec<Ami>, AmiError>,
}

impl Provider {
    /// A provider with an empty cache.
    #[must_use]
    pub fn new(
        clients: Clients,
        clock: &Clock,
        refresh: Duration,
        parameters: Arc<ssm::Provider>,
    ) -> Self {
        Self { clients, clock: clock.clone(), parameters, images: Memo::new(clock, refresh) }
    }

    /// The images of a node class, newest first. `kubernetes` is `major.minor`.
    ///
    /// # Errors
    /// When the alias does not go with the Kubernetes version, or AWS cannot be asked.
    pub async fn list(&self, class: &EC2NodeClass, kubernetes: &str) -> Result<Vec<Ami>, AmiError> {
        // Before what is kept counts, so that a new version or a moved parameter is seen.
        let queries = self.queries(class, kubernetes).await?;
        self.images.get(&cache_key(&class.metadata), || self.search(queries)).await
    }

    async fn search(&self, queries: Vec<Query>) -> Result<Vec<Ami>, AmiError> {
        let mut known: BTreeMap<String, Vec<Variant>> = BTreeMap::new();
        // By id, since several terms may find the same image.
        let mut images: BTreeMap<String, Image> = BTreeMap::new();
        for query in queries {
            known.extend(query.known.clone());
            for image in self.describe(&query).await.map_err(AmiError::describing)? {
                images.insert(image.image_id().unwrap_or_default().to_owned(), image);
            }
        }
        Ok(choose::choose(images.into_values(), &known, self.clock.now()))
    }

    /// Forgets SSM parameters whose image has been deprecated: a newer one takes its place.
    ///
    /// # Errors
    /// When EC2 cannot be asked about an image.
    pub async fn forget_deprecated(&self) -> Result<(), AwsError> {
        // Parameters of a fixed release always name the same image, so only the others are checked.
        for (name, id) in self.parameters.mutable() {
            let found = self.describe(&Query::of_ids(vec![id])).await?;
            if found.iter().any(|image| choose::is_deprecated(image, self.clock.now())) {
                self.parameters.forget(&name);
            }
        }
        Ok(())
    }

    async fn queries(
        &self,
        class: &EC2NodeClass,
        kubernetes: &str,
    ) -> Result<Vec<Query>, AmiError> {
        let terms = &class.spec.ami_selector_terms;
        if let Some(alias) = terms.iter().find_map(|t| t.alias.as_deref()) {
            return Ok(vec![self.alias_query(alias, kubernetes).await?]);
        }
        let mut queries = Vec::new();
        let mut ids: Vec<String> = Vec::new();
        for term in terms {
            if let Some(id) = &term.id {
                ids.push(id.clone());
            } else if let Some(parameter) = &term.ssm_parameter {
                ids.extend(self.custom_parameter(parameter).await?);
            } else {
                queries.push(Query::of_term(term));
            }
        }
        if !ids.is_empty() {
            queries.push(Query::of_ids(ids));
        }
        Ok(queries)
    }

    async fn alias_query(&self, alias: &str, kubernetes: &str) -> Result<Query, AmiError> {
        let (name, version) = alias.split_once('@').unwrap_or((alias, "latest"));
        let family = AmiFamily::parse(name).unwrap_or(AmiFamily::Custom);
        check_alias(family, kubernetes)?;
        let mut known = BTreeMap::new();
        for (parameter, variants) in ssm_parameters(family, kubernetes, version) {
            match self.parameters.get(&parameter).await {
                Ok(id) => {
                    known.insert(id, variants);
                }
                // Not every variant exists for every release.
                Err(error) if error.is_not_found() => {}
                // To go on without an image that exists would drift every node that has it.
                Err(error) => {
                    let attempt = "getting ssm parameter, ";
                    return Err(AmiError::parameter(attempt, error, &parameter.name));
                }
            }
        }
        if known.is_empty() {
            return Err(AmiError::NoRelease(alias.to_owned()));
        }
        let ids = known.keys().cloned().collect();
        Ok(Query { known, ..Query::of_ids(ids) })
    }

    async fn custom_parameter(&self, name: &str) -> Result<Option<String>, AmiError> {
        let parameter = Parameter { name: name.to_owned(), kind: Kind::Custom };
        match self.parameters.get(&parameter).await {
            // A parameter that is missing or holds something else is logged and skipped, so that
            // the images of the other terms stay in use.
            Ok(id) if id.starts_with("ami-") => Ok(Some(id)),
            Ok(id) => {
                tracing::error!(
                    "ssmParameter" = name,
                    "id" = id,
                    "parameter value is an invalid AMI ID"
                );
                Ok(None)
            }
            Err(error) if error.is_not_found() => {
                tracing::error!("error" = %error, "ssmParameter" = name, "parameter not found");
                Ok(None)
            }
            Err(error) => {
                let attempt = "resolving ssm parameter, getting ssm parameter, ";
                Err(AmiError::parameter(attempt, error, name))
            }
        }
    }

    async fn describe(&self, query: &Query) -> Result<Vec<Image>, AwsError> {
        let mut pages = self
            .clients
            .ec2
            .describe_images()
            .set_owners((!query.owners.is_empty()).then(|| query.owners.clone()))
            .set_filters(Some(query.filters.clone()))
            .filters(filter("state", vec!["available".to_owned()]))
            // A pinned image stays usable after its deprecation; `choose` prefers the others.
            .include_deprecated(true)
            .into_paginator()
            .page_size(1000)
            .send();
        let mut images = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| AwsError::new("DescribeImages", &e))?;
            images.extend(page.images.unwrap_or_default());
        }
        Ok(images)
    }
}

/// One call of DescribeImages.
#[derive(Clone, Debug, Default)]
struct Query {
    owners: Vec<String>,
    filters: Vec<Filter>,
    /// What each image is for, where the query knows.
    known: BTreeMap<String, Vec<Variant>>,
}

impl Query {
    fn of_ids(ids: Vec<String>) -> Self {
        Self { filters: vec![filter("image-id", ids)], ..Self::default() }
    }

    /// A term by tags, name or owner. A name alone may be anybody's, so it needs an owner.
    fn of_term(term: &AmiSelectorTerm) -> Self {
        let mut filters = Vec::new();
        let mut owners: Vec<String> = term.owner.iter().cloned().collect();
        if let Some(name) = &term.name {
            filters.push(filter("name", vec![name.clone()]));
            if owners.is_empty() {
                // Anybody can publish an image of that name.
                owners = vec!["self".to_owned(), "amazon".to_owned()];
            }
        }
        filters.extend(tag_filters(term.tags.as_ref()));
        Self { owners, filters, known: BTreeMap::new() }
    }
}

fn check_alias(family: AmiFamily, kubernetes: &str) -> Result<(), AmiError> {
    let minor: u32 = kubernetes.split('.').nth(1).and_then(|m| m.parse().ok()).unwrap_or(0);
    if family == AmiFamily::Al2 && minor >= 33 {
        return Err(AmiError::UnsupportedAlias(format!(
            "AL2 aliases are no longer supported on EKS 1.33+ (see {AL2_DEPRECATION})"
        )));
    }
    if family == AmiFamily::Windows2025 && minor < 35 {
        return Err(AmiError::UnsupportedAlias(format!(
            "Windows Server 2025 requires EKS version 1.35 or higher, current version: {kubernetes}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_have_their_kubernetes_versions() {
        assert!(check_alias(AmiFamily::Al2, "1.32").is_ok());
        assert!(check_alias(AmiFamily::Al2, "1.33").is_err());
        assert!(check_alias(AmiFamily::Windows2025, "1.34").is_err());
        assert!(check_alias(AmiFamily::Windows2025, "1.35").is_ok());
    }

    #[test]
    fn a_name_is_looked_for_among_ones_own_and_amazons() {
        let term = |v: serde_json::Value| -> AmiSelectorTerm { serde_json::from_value(v).unwrap() };
        let query = |v| Query::of_term(&term(v));
        assert_eq!(query(serde_json::json!({"name": "x"})).owners, ["self", "amazon"]);
        assert_eq!(query(serde_json::json!({"name": "x", "owner": "1"})).owners, ["1"]);
        assert!(query(serde_json::json!({"tags": {"a": "b"}})).owners.is_empty());
        let any = query(serde_json::json!({"tags": {"a": "*"}}));
        assert_eq!(any.filters, [filter("tag-key", vec!["a".to_owned()])]);
    }
}
