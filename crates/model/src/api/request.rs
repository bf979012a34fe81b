//! From a URL to what is asked.

use std::collections::BTreeMap;

use super::failure::Failure;
use super::kinds::{self, Kind};

/// What a request is about.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// `/version`.
    Version,
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// The kinds of a group and version.
    Kinds(String, String),
    /// Objects, or one of them.
    Objects { kind: &'static Kind, namespace: String, name: String, subresource: String },
}

impl Target {
    /// What a path is about.
    pub(crate) fn parse(path: &str) -> Result<Self, Failure> {
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["version"] => return Ok(Self::Version),
            ["api"] => return Ok(Self::CoreVersions),
            ["apis"] => return Ok(Self::Groups),
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Err(Failure::no_such_path()),
        };
        if rest.is_empty() {
            return Ok(Self::Kinds(group.to_owned(), version.to_owned()));
        }
        let objects = |namespace: &str, plural: &str, name: &str, subresource: &str| {
            let kind = kinds::find(group, version, plural).ok_or_else(Failure::no_such_path)?;
            Ok(Self::Objects {
                kind,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                subresource: subresource.to_owned(),
            })
        };
        match rest {
            ["namespaces", name] => objects("", "namespaces", name, ""),
            ["namespaces", name, sub @ ("status" | "finalize")] => {
                objects("", "namespaces", name, sub)
            }
            ["namespaces", namespace, plural] => objects(namespace, plural, "", ""),
            ["namespaces", namespace, plural, name] => objects(namespace, plural, name, ""),
            ["namespaces", namespace, plural, name, sub] => objects(namespace, plural, name, sub),
            [plural] => objects("", plural, "", ""),
            [plural, name] => objects("", plural, name, ""),
            [plural, name, sub] => objects("", plural, name, sub),
            _ => Err(Failure::no_such_path()),
        }
    }
}

/// The parameters of a URL.
pub(crate) fn parameters(query: &str) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}
