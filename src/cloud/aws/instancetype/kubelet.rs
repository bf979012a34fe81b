//! What of `spec.kubelet` changes a machine's capacity and overhead.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::expressions::{self, Variables};
use crate::api::v1::EC2NodeClass;
use crate::scheduling::quantity;
use crate::scheduling::resources::{Name, ResourceList};

/// The kubelet's settings, as far as they count here.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    pub max_pods: Option<MaxPods>,
    pub pods_per_core: Option<i64>,
    pub kube_reserved: BTreeMap<String, String>,
    pub system_reserved: BTreeMap<String, String>,
    pub eviction_hard: BTreeMap<String, String>,
}

/// A pod limit, or how to work it out.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum MaxPods {
    Count(i64),
    Expression(Arc<str>),
}

impl Settings {
    /// Reads a node class's settings.
    ///
    /// # Errors
    /// When a field that counts has the wrong type.
    pub fn of(class: &EC2NodeClass) -> Result<Self, String> {
        let Some(map) = &class.spec.kubelet else { return Ok(Self::default()) };
        // Other fields are not read here: a wrong one must not keep the types from being listed.
        // The condition of the class reports it.
        let wanted = ["maxPods", "podsPerCore", "kubeReserved", "systemReserved", "evictionHard"];
        let mut known = Map::new();
        for key in wanted {
            if let Some(value) = map.get(key).filter(|v| !v.is_null()) {
                known.insert(key.to_owned(), value.clone());
            }
        }
        serde_path_to_error::deserialize(Value::Object(known))
            .map_err(|e| format!("parsing spec.kubelet, {e}"))
    }

    /// A map of reserved amounts; expressions are evaluated where they are in use, else left out.
    #[must_use]
    pub fn reserved(
        &self,
        map: &BTreeMap<String, String>,
        variables: Option<&Variables<'_>>,
    ) -> ResourceList {
        map.iter()
            .filter_map(|(name, text)| {
                let parsed = match (quantity::parse(text), variables) {
                    (Ok(parsed), _) => parsed,
                    (Err(_), Some(variables)) => {
                        quantity::parse(&expressions::reserved_or_nothing(name, text, variables)?)
                            .ok()?
                    }
                    (Err(_), None) => return None,
                };
                let name = Name::from(name.as_str());
                let value = if name == Name::Cpu { parsed.milli() } else { parsed.value() };
                Some((name, value))
            })
            .collect()
    }
}

/// A threshold as a quantity, or as a percentage of the capacity; `100%` turns it off.
pub(super) fn eviction_amount(text: &str, total: i64) -> Option<i64> {
    let Some(percent) = text.strip_suffix('%') else {
        return quantity::parse(text).ok().map(quantity::Quantity::value);
    };
    let percent: f64 = percent.parse().ok()?;
    // The kubelet takes 100 % for "no threshold".
    if percent >= 100.0 {
        return Some(0);
    }
    Some((total as f64 / 100.0 * percent).ceil() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_wrong_type_are_named() {
        let read = |kubelet: serde_json::Value| {
            let spec = serde_json::json!({ "kubelet": kubelet });
            Settings::of(&EC2NodeClass::new("c", serde_json::from_value(spec).unwrap()))
        };
        let good = read(serde_json::json!({"maxPods": 8, "cpuCFSQuota": true})).unwrap();
        assert_eq!(good.max_pods, Some(MaxPods::Count(8)));
        let text = read(serde_json::json!({"maxPods": "vcpus * 4"})).unwrap();
        assert_eq!(text.max_pods, Some(MaxPods::Expression("vcpus * 4".into())));
        let bad = read(serde_json::json!({"podsPerCore": "x"})).unwrap_err();
        assert!(bad.starts_with("parsing spec.kubelet, podsPerCore"), "{bad}");
        assert!(read(serde_json::json!({"kubeReserved": {"cpu": 1}})).is_err());
    }

    #[test]
    fn eviction_thresholds_are_amounts_or_shares() {
        assert_eq!(eviction_amount("5%", 1000), Some(50));
        assert_eq!(eviction_amount("100%", 1000), Some(0));
        assert_eq!(eviction_amount("1Ki", 0), Some(1024));
        assert_eq!(eviction_amount("x", 0), None);
    }
}
