//! What `--scheduler-config` says: YAML or JSON with spread constraints for pods without any.

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;

use super::checks::is_qualified_name;

/// What `--scheduler-config` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SchedulerConfig {
    /// For pods that declare no spread constraint.
    pub default_constraints: Vec<TopologySpreadConstraint>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RawConfig {
    pod_topology_spread: RawSpread,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RawSpread {
    default_constraints: Vec<RawConstraint>,
}

/// One constraint; the API's own type would let unknown fields pass.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawConstraint {
    #[serde(default)]
    max_skew: i32,
    #[serde(default)]
    topology_key: String,
    #[serde(default)]
    when_unsatisfiable: String,
    min_domains: Option<i32>,
    node_affinity_policy: Option<String>,
    node_taints_policy: Option<String>,
    label_selector: Option<LabelSelector>,
    match_label_keys: Option<Vec<String>>,
}

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is no such document.
    #[error("decoding scheduler config, {0}")]
    Decoding(String),
    /// A constraint is not allowed.
    #[error("validating scheduler config, podTopologySpread.defaultConstraints[{index}]{problem}")]
    Invalid { index: usize, problem: String },
}

impl SchedulerConfig {
    /// Reads YAML or JSON; an empty text is an empty configuration.
    ///
    /// # Errors
    /// When the text is not such a document, or a constraint is not allowed.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        // One line, since it goes to logs and behind a place in a document.
        let options = serde_saphyr::options! { with_snippet: false };
        let raw: RawConfig = serde_saphyr::from_str_with_options(text, options)
            .map_err(|e| ConfigError::Decoding(e.to_string()))?;
        let list = raw.pod_topology_spread.default_constraints;
        for (index, item) in list.iter().enumerate() {
            check(item, &list[..index])
                .map_err(|problem| ConfigError::Invalid { index, problem })?;
        }
        let default_constraints = list
            .into_iter()
            .map(|raw| TopologySpreadConstraint {
                max_skew: raw.max_skew,
                topology_key: raw.topology_key,
                when_unsatisfiable: raw.when_unsatisfiable,
                min_domains: raw.min_domains,
                node_affinity_policy: raw.node_affinity_policy,
                node_taints_policy: raw.node_taints_policy,
                label_selector: None,
                match_label_keys: None,
            })
            .collect();
        Ok(Self { default_constraints })
    }
}

fn check(item: &RawConstraint, earlier: &[RawConstraint]) -> Result<(), String> {
    if item.max_skew <= 0 {
        return Err(".maxSkew must be greater than 0".to_owned());
    }
    let key = &item.topology_key;
    if key.is_empty() {
        return Err(".topologyKey must be set".to_owned());
    }
    if !is_qualified_name(key) {
        return Err(format!(
            ".topologyKey {key:?} is not a valid label name, expected [prefix/]name"
        ));
    }
    let when = &item.when_unsatisfiable;
    if !matches!(when.as_str(), "DoNotSchedule" | "ScheduleAnyway") {
        return Err(format!(
            ".whenUnsatisfiable {when:?} must be one of \"DoNotSchedule\" or \"ScheduleAnyway\""
        ));
    }
    if item.label_selector.is_some() {
        return Err(
            ".labelSelector must not be set, as selectors are deduced for each pod".to_owned()
        );
    }
    if item.match_label_keys.as_ref().is_some_and(|k| !k.is_empty()) {
        return Err(".matchLabelKeys must not be set, as it has no effect on default constraints"
            .to_owned());
    }
    match earlier.iter().position(|e| e.topology_key == *key && e.when_unsatisfiable == *when) {
        Some(at) => Err(format!(" is a duplicate of [{at}], {{{key}, {when}}}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "podTopologySpread:
  defaultConstraints:
  - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: ScheduleAnyway}
";

    fn text(config: &str) -> String {
        SchedulerConfig::parse(config).unwrap_err().to_string()
    }

    #[test]
    fn a_configuration_is_read_strictly() {
        assert_eq!(SchedulerConfig::parse(CONFIG).unwrap().default_constraints.len(), 1);
        assert_eq!(SchedulerConfig::parse(" ").unwrap(), SchedulerConfig::default());
        assert!(text("podTopologySpread: {x: 1}").starts_with("decoding scheduler config, "));
        let one =
            |item: &str| text(&format!("podTopologySpread: {{defaultConstraints: [{item}]}}"));
        let good = "{maxSkew: 1, topologyKey: a, whenUnsatisfiable: DoNotSchedule}";
        assert!(
            one("{topologyKey: a, whenUnsatisfiable: DoNotSchedule}")
                .ends_with("[0].maxSkew must be greater than 0")
        );
        assert!(
            one("{maxSkew: 1, whenUnsatisfiable: DoNotSchedule}")
                .contains(".topologyKey must be set")
        );
        assert!(
            one("{maxSkew: 1, topologyKey: a/b/c, whenUnsatisfiable: DoNotSchedule}")
                .contains("not a valid label name")
        );
        assert!(
            one("{maxSkew: 1, topologyKey: a, whenUnsatisfiable: Never}")
                .contains("must be one of")
        );
        assert!(
            one(
                "{maxSkew: 1, topologyKey: a, whenUnsatisfiable: DoNotSchedule, labelSelector: {}}"
            )
            .contains(".labelSelector must not")
        );
        assert!(
            one(&format!("{good}, {good}"))
                .ends_with("[1] is a duplicate of [0], {a, DoNotSchedule}")
        );
    }
}
