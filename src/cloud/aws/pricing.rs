//! On-demand and spot prices: refreshed from AWS, kept when AWS cannot be asked, and until then
//! taken from the last run or from the tables compiled in.
//!
//! Each price carries where it comes from. An estimate orders types, and is good for no more:
//! nothing is replaced for its sake.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aws_sdk_pricing::types::{Filter, FilterType};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::clients::{self, Clients};
use super::errors::AwsError;

mod fallback;
mod kept;

pub use self::kept::Keeper;

/// Prices an hour.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    isolated: bool,
    prices: RwLock<Prices>,
    /// Rises whenever a price may have changed.
    version: AtomicU64,
    logged_why_not: AtomicBool,
}

/// Where an on-demand price comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The price list, in this process or an earlier one, or an administrator.
    List,
    /// AWS's published prices that are compiled in.
    Table,
    /// Worked out from the type's price in another region, or from a type like it.
    Estimate,
}

/// A price an hour in the region's currency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Price {
    pub amount: f64,
    pub source: Source,
}

impl Price {
    /// True for a price that was estimated because none is published.
    #[must_use]
    pub fn is_estimated(&self) -> bool {
        self.source == Source::Estimate
    }
}

#[derive(Debug, Default)]
struct Prices {
    on_demand: HashMap<String, Price>,
    spot: HashMap<String, BTreeMap<String, f64>>,
}

/// Prices by type, and for spot by zone, as AWS or an administrator gave them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Known {
    pub on_demand: HashMap<String, f64>,
    /// Empty until spot prices are known: then the on-demand price stands in everywhere.
    pub spot: HashMap<String, BTreeMap<String, f64>>,
}

/// Names of the instance types that this release knows without asking AWS.
#[must_use]
pub fn known_types() -> BTreeSet<String> {
    fallback::on_demand("us-east-1").into_keys().collect()
}

/// Names of the instance types that a region has, as far as this release knows.
#[must_use]
pub fn types_in(region: &str) -> BTreeSet<String> {
    let gone = fallback::not_offered(region);
    known_types().into_iter().filter(|name| !gone.contains(name.as_str())).collect()
}

impl Provider {
    /// A provider that knows what the tables say; `isolated` means no way to the price list.
    #[must_use]
    pub fn new(clients: Clients, isolated: bool) -> Self {
        let on_demand = fallback::on_demand(&clients.region);
        Self {
            clients,
            isolated,
            prices: RwLock::new(Prices { on_demand, spot: HashMap::new() }),
            version: AtomicU64::new(1),
            logged_why_not: AtomicBool::new(false),
        }
    }

    /// The region whose prices these are.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.clients.region
    }

    /// A number that changes with the prices.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// On-demand price of a type.
    #[must_use]
    pub fn on_demand(&self, instance_type: &str) -> Option<Price> {
        self.prices.read().on_demand.get(instance_type).copied()
    }

    /// Spot price of a type in a zone; the on-demand price until spot prices are known, which
    /// no spot price exceeds.
    #[must_use]
    pub fn spot(&self, instance_type: &str, zone: &str) -> Option<Price> {
        let prices = self.prices.read();
        // Only while nothing at all is known: later, a type without a spot price has no spot
        // offering.
        if prices.spot.is_empty() {
            return prices.on_demand.get(instance_type).copied();
        }
        let amount = prices.spot.get(instance_type)?.get(zone).copied()?;
        Some(Price { amount, source: Source::List })
    }

    /// What AWS or an administrator gave: nothing of the tables compiled in, which a later
    /// release may have better.
    #[must_use]
    pub fn known(&self) -> Known {
        let prices = self.prices.read();
        let listed = prices.on_demand.iter().filter(|(_, p)| p.source == Source::List);
        Known {
            on_demand: listed.map(|(name, p)| (name.clone(), p.amount)).collect(),
            spot: prices.spot.clone(),
        }
    }

    /// How many types have a published price, and how many an estimated one.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let prices = self.prices.read();
        let estimated = prices.on_demand.values().filter(|p| p.is_estimated()).count();
        (prices.on_demand.len() - estimated, estimated)
    }

    /// Lays prices over those known; unusable ones are left out.
    pub fn learn(&self, new: Known) {
        let usable = |price: &f64| price.is_finite() && *price > 0.0;
        let mut prices = self.prices.write();
        let listed = |amount| Price { amount, source: Source::List };
        let on_demand = new.on_demand.into_iter().filter(|(_, p)| usable(p));
        // An answer may lack types, and a type without a price could not be launched: what is not
        // in it stays.
        prices.on_demand.extend(on_demand.map(|(name, amount)| (name, listed(amount))));
        for (kind, zones) in new.spot {
            let zones = zones.into_iter().filter(|(_, p)| usable(p));
            prices.spot.entry(kind).or_default().extend(zones);
        }
        drop(prices);
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Why the price list is not asked, if it is not.
    fn why_not(&self) -> Option<&'static str> {
        if self.isolated {
            return Some(
                "running in an isolated VPC, on-demand pricing information will not be updated",
            );
        }
        if self.clients.region.starts_with("us-gov") {
            return Some(
                "pricing APIs aren't available in AWS GovCloud regions, on-demand pricing information will not be updated",
            );
        }
        clients::pricing_region(&self.clients.region).is_none().then_some(
            "pricing APIs aren't available in this AWS partition, on-demand pricing information will not be updated",
        )
    }

    /// Reads the price list; prices of types that are not in the answer stay.
    ///
    /// # Errors
    /// When the price list cannot be read or lacks shared or bare metal instances.
    pub async fn update_on_demand(&self) -> Result<(), AwsError> {
        if let Some(reason) = self.why_not() {
            if !self.logged_why_not.swap(true, Ordering::AcqRel) {
                let (published, estimated) = self.counts();
                tracing::info!(
                    "published-price-count" = published,
                    "estimated-price-count" = estimated,
                    "{reason}"
                );
            }
            return Ok(());
        }
        let shared = self.products("Shared", "Compute Instance");
        // The price list has bare metal types under dedicated tenancy only.
        let metal = self.products("Dedicated", "Compute Instance (bare metal)");
        let (mut on_demand, metal) = tokio::try_join!(shared, metal)?;
        if on_demand.is_empty() || metal.is_empty() {
            return Err(empty("GetProducts", "no on-demand pricing found"));
        }
        on_demand.extend(metal);
        self.learn(Known { on_demand, ..Known::default() });
        let (published, estimated) = self.counts();
        tracing::debug!(
            "instance-type-count" = published + estimated,
            "estimated-price-count" = estimated,
            "updated on-demand pricing"
        );
        Ok(())
    }

    async fn products(
        &self,
        tenancy: &str,
        family: &str,
    ) -> Result<HashMap<String, f64>, AwsError> {
        let mut request = self.clients.pricing.get_products().service_code("AmazonEC2");
        for (field, value) in [
            ("regionCode", self.clients.region.as_str()),
            ("serviceCode", "AmazonEC2"),
            // The price list has a product for each combination of operating system, licence,
            // tenancy and state of a reservation. These filters leave one price per instance type.
            ("preInstalledSw", "NA"),
            ("operatingSystem", "Linux"),
            ("capacitystatus", "Used"),
            ("marketoption", "OnDemand"),
            ("tenancy", tenancy),
            ("productFamily", family),
        ] {
            let filter =
                Filter::builder().field(field).r#type(FilterType::TermMatch).value(value).build();
            let filter = filter
                .map_err(|e| AwsError::local("GetProducts", "RequestNotBuilt", e.to_string()))?;
            request = request.filters(filter);
        }
        let currency = clients::currency(&self.clients.region);
        let mut pages = request.into_paginator().page_size(100).send();
        let mut found = HashMap::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| AwsError::new("GetProducts", &e))?;
            found.extend(page.price_list().iter().filter_map(|item| parse_item(item, currency)));
        }
        Ok(found)
    }

    /// Reads spot prices; those of other pools stay.
    ///
    /// # Errors
    /// When they cannot be read or there are none.
    pub async fn update_spot(&self, now: jiff::Timestamp) -> Result<(), AwsError> {
        let mut pages = self
            .clients
            .ec2
            .describe_spot_price_history()
            .product_descriptions("Linux/UNIX")
            .product_descriptions("Linux/UNIX (Amazon VPC)")
            // With the current time as start, EC2 returns the price in force for each pool, and no
            // history.
            .start_time(aws_smithy_types::DateTime::from_secs(now.as_second()))
            .into_paginator()
            .page_size(2000)
            .send();
        let mut spot: HashMap<String, BTreeMap<String, f64>> = HashMap::new();
        let mut count = 0_usize;
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| AwsError::new("DescribeSpotPriceHistory", &e))?;
            for record in page.spot_price_history() {
                let price = record.spot_price().and_then(|p| p.parse::<f64>().ok());
                let kind = record.instance_type().map(|t| t.as_str());
                if let (Some(price), Some(kind), Some(zone), Some(_)) =
                    (price, kind, record.availability_zone(), record.timestamp())
                {
                    spot.entry(kind.to_owned()).or_default().insert(zone.to_owned(), price);
                    count += 1;
                }
            }
        }
        if spot.is_empty() {
            return Err(empty("DescribeSpotPriceHistory", "no spot pricing found"));
        }
        let types = spot.len();
        self.learn(Known { spot, ..Known::default() });
        tracing::debug!(
            "instance-type-count" = types,
            "offering-count" = count,
            "updated spot pricing with instance types and offerings"
        );
        Ok(())
    }
}

fn empty(operation: &'static str, message: &str) -> AwsError {
    AwsError::local(operation, "Empty", message)
}

/// Type and price of an item of the price list, if it has both.
fn parse_item(item: &str, currency: &str) -> Option<(String, f64)> {
    let item: Value = serde_json::from_str(item).ok()?;
    let kind = item.pointer("/product/attributes/instanceType")?.as_str()?.to_owned();
    let terms = item.pointer("/terms/OnDemand")?.as_object()?;
    terms
        .values()
        .filter_map(|term| term.get("priceDimensions")?.as_object())
        .flat_map(|dimensions| dimensions.values())
        .filter_map(|d| d.get("pricePerUnit")?.get(currency)?.as_str()?.parse::<f64>().ok())
        // An item also lists terms that cost nothing, such as those under a reservation.
        .find(|price| *price > 0.0)
        .map(|price| (kind, price))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(region: &'static str, isolated: bool) -> Provider {
        let config = aws_config::SdkConfig::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .region(aws_config::Region::new(region))
            .build();
        Provider::new(Clients::new(&config), isolated)
    }

    #[test]
    fn items_of_the_price_list_parse() {
        let item = r#"{"product":{"attributes":{"instanceType":"t3.medium"}},"terms":{"OnDemand":{"A":{"priceDimensions":{"B":{"pricePerUnit":{"USD":"0.0416"}}}}}}}"#;
        assert_eq!(parse_item(item, "USD"), Some(("t3.medium".to_owned(), 0.0416)));
        assert_eq!(parse_item(item, "CNY"), None);
        assert_eq!(parse_item(&item.replace("0.0416", "0.0"), "USD"), None);
        assert_eq!(parse_item(&item.replace("0.0416", "?"), "USD"), None);
        assert_eq!(parse_item("{}", "USD"), None);
        assert_eq!(parse_item("no json", "USD"), None);
    }

    #[test]
    fn spot_costs_as_on_demand_until_spot_prices_are_known() {
        let provider = provider("us-east-1", false);
        let version = provider.version();
        let amount = |price: Option<Price>| price.map(|p| p.amount);
        assert_eq!(amount(provider.spot("m5.large", "us-east-1a")), Some(0.096));
        let zones =
            BTreeMap::from([("us-east-1a".to_owned(), 0.03), ("us-east-1b".to_owned(), 0.0)]);
        let spot = HashMap::from([("m5.large".to_owned(), zones)]);
        provider.learn(Known { spot, ..Known::default() });
        assert!(provider.version() > version);
        assert_eq!(amount(provider.spot("m5.large", "us-east-1a")), Some(0.03));
        assert_eq!(provider.spot("m5.large", "us-east-1b"), None);
        assert_eq!(provider.spot("c5.large", "us-east-1a"), None);
        assert_eq!(amount(provider.on_demand("c5.large")), Some(0.085));
    }

    #[test]
    fn a_price_that_was_told_is_no_estimate_and_is_kept() {
        let provider = provider("eu-west-1", true);
        let price = provider.on_demand("m5.large").unwrap();
        assert!(price.is_estimated());
        assert!(provider.spot("m5.large", "eu-west-1a").unwrap().is_estimated());
        assert_eq!(provider.known(), Known::default(), "tables are not what was told");
        let (published, estimated) = provider.counts();
        assert!(published == 0 && estimated > 1000);
        let on_demand = HashMap::from([("m5.large".to_owned(), 0.107)]);
        provider.learn(Known { on_demand: on_demand.clone(), ..Known::default() });
        let price = provider.on_demand("m5.large").unwrap();
        assert_eq!(price, Price { amount: 0.107, source: Source::List });
        assert_eq!(provider.known().on_demand, on_demand);
        assert_eq!(provider.counts(), (1, estimated - 1));
    }

    #[tokio::test]
    async fn where_the_price_list_cannot_be_reached_it_is_not_asked() {
        provider("us-gov-west-1", false).update_on_demand().await.unwrap();
        let isolated = provider("eu-west-1", true);
        isolated.update_on_demand().await.unwrap();
        assert!(isolated.on_demand("m5.large").unwrap().amount > 0.1);
    }
}
