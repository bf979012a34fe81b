//! Turning selector terms into EC2 filters.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::Filter;
use kube::api::ObjectMeta;

/// A filter with its values.
#[must_use]
pub fn filter(name: &str, values: Vec<String>) -> Filter {
    Filter::builder().name(name).set_values(Some(values)).build()
}

/// Filters on tags; the value `*` asks for the key alone.
#[must_use]
pub fn tag_filters(tags: Option<&BTreeMap<String, String>>) -> Vec<Filter> {
    tags.into_iter()
        .flatten()
        .map(|(key, value)| {
            if value == "*" {
                filter("tag-key", vec![key.clone()])
            } else {
                filter(&format!("tag:{key}"), vec![value.clone()])
            }
        })
        .collect()
}

/// Identifies one state of an object's spec.
#[must_use]
pub fn cache_key(meta: &ObjectMeta) -> String {
    format!(
        "{}-{}-{}",
        meta.name.as_deref().unwrap_or(""),
        meta.uid.as_deref().unwrap_or(""),
        meta.generation.unwrap_or(0)
    )
}
