//! A ConfigMap in which something outlives the process.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams};

/// Who owns the fields that are written.
const MANAGER: &str = "karpenter";

/// Reads and writes one ConfigMap.
pub struct Store {
    api: Api<ConfigMap>,
    name: String,
}

impl Store {
    /// The ConfigMap of that name in a namespace; `None` for an empty name, which switches keeping
    /// off.
    #[must_use]
    pub fn new(client: kube::Client, namespace: &str, name: &str) -> Option<Self> {
        let api = Api::namespaced(client, namespace);
        (!name.is_empty()).then(|| Self { api, name: name.to_owned() })
    }

    /// The ConfigMap's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ConfigMap, if there is one.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn read(&self) -> Result<Option<ConfigMap>, kube::Error> {
        self.api.get_opt(&self.name).await
    }

    /// Writes the data, over whatever others wrote under the same keys.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn write(&self, data: BTreeMap<String, String>) -> Result<(), kube::Error> {
        let map = ConfigMap {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            data: Some(data),
            ..ConfigMap::default()
        };
        // Server-side apply: keys that somebody else added stay, and no version is needed.
        let params = PatchParams::apply(MANAGER).force();
        self.api.patch(&self.name, &params, &Patch::Apply(&map)).await.map(drop)
    }
}

/// True for an object that nobody but a controller wrote.
#[must_use]
pub fn is_own(metadata: &ObjectMeta) -> bool {
    let managers = metadata.managed_fields.as_deref().unwrap_or_default();
    // Without managed fields nothing is known, so it counts as somebody else's.
    !managers.is_empty() && managers.iter().all(|m| m.manager.as_deref() == Some(MANAGER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_somebody_else_wrote_to_is_not_our_own() {
        let written_by = |managers: &[&str]| -> ObjectMeta {
            let list: Vec<_> = managers.iter().map(|m| serde_json::json!({"manager": m})).collect();
            serde_json::from_value(serde_json::json!({"managedFields": list})).unwrap()
        };
        assert!(is_own(&written_by(&[MANAGER])));
        assert!(!is_own(&written_by(&[MANAGER, "kubectl"])));
        assert!(!is_own(&written_by(&[])));
    }
}
