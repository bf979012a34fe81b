//! Lists: consistent at one version, in pages, and old ones where a client allows that.

use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Value, json};

use super::failure::Failure;
use super::kinds::Kind;
use super::selector::Selector;
use super::store::{Key, Store};

/// Why a list of an old version is no longer available.
const TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.";

/// What a list is asked with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub(crate) namespace: String,
    pub(crate) selector: Selector,
    /// Items per page; 0 for all.
    pub(crate) limit: usize,
    pub(crate) resume: String,
    /// `resourceVersion`; empty for the latest.
    pub(crate) version: String,
    pub(crate) exact: bool,
    /// Changes that a list which may be old lacks.
    pub(crate) stale: u64,
}

const ENGINE: base64::engine::GeneralPurpose = base64::engine::general_purpose::URL_SAFE_NO_PAD;

impl Store {
    /// A list as the body of the answer.
    pub(crate) fn list(&self, kind: &Kind, query: &Query) -> Result<Bytes, Failure> {
        let inner = self.inner.lock();
        let table = &inner.tables[kind.index()];
        let (version, start) = if query.resume.is_empty() {
            (wanted_version(query, inner.version)?, None)
        } else {
            let (version, key) = resume(&query.resume)?;
            (version, Some(key))
        };
        let old;
        let objects = if version >= inner.version {
            &table.objects
        } else {
            // An old list that is no longer available is refused, unless any version will do.
            match table.at(version) {
                Some(found) => {
                    old = found;
                    &old
                }
                None if query.resume.is_empty() && !query.exact => &table.objects,
                None => return Err(Failure::expired(TOO_OLD)),
            }
        };
        let within = |key: &Key| query.namespace.is_empty() || key.namespace == query.namespace;
        let all = query.selector.is_empty();
        let mut found = objects
            .iter()
            .filter(|(key, _)| start.as_ref().is_none_or(|s| *key > s) && within(key))
            .filter(|(_, object)| all || query.selector.matches(object));
        let limit = if query.limit == 0 { usize::MAX } else { query.limit };
        let mut text = String::from("[");
        let mut last = None;
        for (at, (key, object)) in found.by_ref().take(limit).enumerate() {
            if at > 0 {
                text.push(',');
            }
            text.push_str(&object.to_string());
            last = Some(key);
        }
        text.push(']');
        let left = found.count();
        let mut meta = json!({ "resourceVersion": version.min(inner.version).to_string() });
        if left > 0
            && let Some(last) = last
        {
            // The version goes along, so that all pages show the same state.
            let token = json!([version, last.namespace, last.name]).to_string();
            meta["continue"] = json!(ENGINE.encode(token));
            // As the API server: with a selector it does not know how many remain.
            if all {
                meta["remainingItemCount"] = json!(left);
            }
        }
        Ok(Bytes::from(format!(
            "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{meta},\"items\":{text}}}",
            kind.kind,
            kind.api_version()
        )))
    }
}

fn wanted_version(query: &Query, current: u64) -> Result<u64, Failure> {
    if query.version.is_empty() {
        return Ok(current);
    }
    let least: u64 = query.version.parse().map_err(|_| {
        Failure::bad_request(format!("invalid resource version {:?}", query.version))
    })?;
    if query.exact {
        return Ok(least);
    }
    Ok(current.saturating_sub(query.stale).max(least).max(1))
}

fn resume(token: &str) -> Result<(u64, Key), Failure> {
    let wrong = || Failure::bad_request("continue key is not valid");
    let bytes = ENGINE.decode(token).map_err(|_| wrong())?;
    let (version, namespace, name): (u64, String, String) = serde_json::from_slice::<Value>(&bytes)
        .and_then(serde_json::from_value)
        .map_err(|_| wrong())?;
    Ok((version, Key { namespace, name }))
}
