//! The last known prices, kept in a ConfigMap: a restart in a VPC without a way to the price list
//! begins with them, and an administrator can write them there.

use std::collections::BTreeMap;

use super::{Known, Provider};
use crate::operator::config_map::{Store, is_own};

// The ConfigMap's keys. Administrators write them too, so that they cannot change.
const REGION: &str = "region";
const ON_DEMAND: &str = "on-demand.json";
const SPOT: &str = "spot.json";
/// Set where `on-demand.json` has published prices only; earlier releases kept estimates, too.
const SOURCE: &str = "source";
const PRICE_LIST: &str = "price-list";
/// Reads and writes the ConfigMap.
pub struct Keeper(Store);

impl Keeper {
    /// Keeps prices in a ConfigMap of a namespace; an empty name keeps none.
    #[must_use]
    pub fn new(client: kube::Client, namespace: &str, name: &str) -> Option<Self> {
        Store::new(client, namespace, name).map(Self)
    }

    /// Teaches the provider what was known last; what cannot be read is left alone.
    pub async fn restore(&self, provider: &Provider) {
        match self.0.read().await {
            Ok(Some(map)) => {
                let mut data = map.data.unwrap_or_default();
                // Estimates of an earlier release would pass for published prices. What an
                // administrator wrote into a map of their own counts as it is.
                if is_own(&map.metadata) && data.get(SOURCE).is_none_or(|s| s != PRICE_LIST) {
                    data.remove(ON_DEMAND);
                }
                match read(&data, provider.region()) {
                    Ok(known) => {
                        tracing::debug!(
                            "instance-type-count" = known.on_demand.len(),
                            "spot-instance-type-count" = known.spot.len(),
                            "restored last known prices"
                        );
                        provider.learn(known);
                    }
                    Err(error) => tracing::error!(
                        "config-map" = self.0.name(),
                        "error" = error,
                        "ignoring last known prices"
                    ),
                }
            }
            Ok(None) => {}
            Err(error) => self.log_failure("reading", &error),
        }
    }

    /// Writes what the provider knows.
    pub async fn keep(&self, provider: &Provider) {
        let data = write(&provider.known(), provider.region());
        if let Err(error) = self.0.write(data).await {
            self.log_failure("writing", &error);
        }
    }

    fn log_failure(&self, what: &str, error: &kube::Error) {
        tracing::debug!(
            "config-map" = self.0.name(),
            "error" = %error,
            "{what} last known prices failed, they will not outlive this process"
        );
    }
}

fn write(known: &Known, region: &str) -> BTreeMap<String, String> {
    // Plain maps of numbers always serialize; sorted, so that equal prices give equal text.
    let on_demand: BTreeMap<_, _> = known.on_demand.iter().collect();
    let spot: BTreeMap<_, _> = known.spot.iter().collect();
    [
        (REGION.to_owned(), region.to_owned()),
        (SOURCE.to_owned(), PRICE_LIST.to_owned()),
        (ON_DEMAND.to_owned(), serde_json::to_string(&on_demand).unwrap_or_default()),
        (SPOT.to_owned(), serde_json::to_string(&spot).unwrap_or_default()),
    ]
    .into()
}

fn read(data: &BTreeMap<String, String>, region: &str) -> Result<Known, String> {
    let of = data.get(REGION).map_or("", String::as_str);
    if of != region {
        return Err(format!("{REGION} is {of:?}, expected {region:?}"));
    }
    let empty = "{}".to_owned();
    let text = |key: &str| data.get(key).unwrap_or(&empty);
    Ok(Known {
        on_demand: serde_json::from_str(text(ON_DEMAND))
            .map_err(|e| format!("{ON_DEMAND}: {e}"))?,
        spot: serde_json::from_str(text(SPOT)).map_err(|e| format!("{SPOT}: {e}"))?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn prices_come_back_as_they_were() {
        let zones = BTreeMap::from([("a".to_owned(), 0.25)]);
        let known = Known {
            on_demand: HashMap::from([("m5.large".to_owned(), 0.096)]),
            spot: HashMap::from([("m5.large".to_owned(), zones)]),
        };
        let mut data = write(&known, "eu-west-1");
        assert_eq!(data[SOURCE], PRICE_LIST);
        assert_eq!(read(&data, "eu-west-1"), Ok(known));
        assert!(read(&data, "us-east-1").unwrap_err().contains("eu-west-1"));
        data.insert(SPOT.to_owned(), "[]".to_owned());
        assert!(read(&data, "eu-west-1").unwrap_err().starts_with(SPOT));
        data.remove(SPOT);
        assert!(read(&data, "eu-west-1").unwrap().spot.is_empty());
    }
}
