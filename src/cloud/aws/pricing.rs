//! On-demand and spot prices, refreshed from AWS and kept when AWS cannot be asked.

use std::collections::HashMap;

use aws_sdk_pricing::types::{Filter, FilterType};
use parking_lot::RwLock;
use serde_json::Value;

use super::clients::Clients;
use super::errors::AwsError;

/// Prices an hour.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    prices: RwLock<Prices>,
}

#[derive(Debug, Default)]
struct Prices {
    on_demand: HashMap<String, f64>,
    spot: HashMap<(String, String), f64>,
    spot_known: bool,
}

impl Provider {
    /// A provider that knows no price yet.
    #[must_use]
    pub fn new(clients: Clients) -> Self {
        Self { clients, prices: RwLock::default() }
    }

    /// On-demand price of a type.
    #[must_use]
    pub fn on_demand(&self, instance_type: &str) -> Option<f64> {
        self.prices.read().on_demand.get(instance_type).copied()
    }

    /// Spot price of a type in a zone; the on-demand price until spot prices are known.
    #[must_use]
    pub fn spot(&self, instance_type: &str, zone: &str) -> Option<f64> {
        let prices = self.prices.read();
        if !prices.spot_known {
            return prices.on_demand.get(instance_type).copied();
        }
        prices.spot.get(&(instance_type.to_owned(), zone.to_owned())).copied()
    }

    /// Reads the price list; prices of types that are not in the answer stay.
    ///
    /// # Errors
    /// When the price list cannot be read or is empty.
    pub async fn update_on_demand(&self) -> Result<(), AwsError> {
        let shared = self.products("Shared", "Compute Instance");
        let metal = self.products("Dedicated", "Compute Instance (bare metal)");
        let (shared, metal) = tokio::try_join!(shared, metal)?;
        if shared.is_empty() {
            return Err(AwsError {
                operation: "GetProducts",
                code: "Empty".to_owned(),
                message: "no on-demand pricing found".to_owned(),
            });
        }
        let mut prices = self.prices.write();
        prices.on_demand.extend(shared);
        prices.on_demand.extend(metal);
        let count = prices.on_demand.len();
        drop(prices);
        tracing::debug!("instance-type-count" = count, "updated on-demand pricing");
        Ok(())
    }

    async fn products(
        &self,
        tenancy: &str,
        family: &str,
    ) -> Result<HashMap<String, f64>, AwsError> {
        let term = |field: &str, value: &str| {
            Filter::builder().field(field).r#type(FilterType::TermMatch).value(value).build()
        };
        let mut request = self.clients.pricing.get_products().service_code("AmazonEC2");
        for (field, value) in [
            ("regionCode", self.clients.region.as_str()),
            ("serviceCode", "AmazonEC2"),
            ("preInstalledSw", "NA"),
            ("operatingSystem", "Linux"),
            ("capacitystatus", "Used"),
            ("marketoption", "OnDemand"),
            ("tenancy", tenancy),
            ("productFamily", family),
        ] {
            let filter = term(field, value).map_err(|e| AwsError {
                operation: "GetProducts",
                code: "RequestNotBuilt".to_owned(),
                message: e.to_string(),
            })?;
            request = request.filters(filter);
        }
        let currency = if self.clients.region.starts_with("cn-") { "CNY" } else { "USD" };
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
            .start_time(aws_smithy_types::DateTime::from_secs(now.as_second()))
            .into_paginator()
            .page_size(2000)
            .send();
        let mut found = HashMap::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| AwsError::new("DescribeSpotPriceHistory", &e))?;
            for record in page.spot_price_history() {
                let price = record.spot_price().and_then(|p| p.parse::<f64>().ok());
                let kind = record.instance_type().map(|t| t.as_str().to_owned());
                let zone = record.availability_zone().map(str::to_owned);
                if let (Some(price), Some(kind), Some(zone)) = (price, kind, zone) {
                    found.insert((kind, zone), price);
                }
            }
        }
        if found.is_empty() {
            return Err(AwsError {
                operation: "DescribeSpotPriceHistory",
                code: "Empty".to_owned(),
                message: "no spot pricing found".to_owned(),
            });
        }
        let mut prices = self.prices.write();
        prices.spot.extend(found);
        prices.spot_known = true;
        let count = prices.spot.len();
        drop(prices);
        tracing::debug!(
            "offering-count" = count,
            "updated spot pricing with instance types and offerings"
        );
        Ok(())
    }
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
        .find(|price| *price > 0.0)
        .map(|price| (kind, price))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_the_price_list_parse() {
        let item = r#"{"product":{"attributes":{"instanceType":"t3.medium"}},"terms":{"OnDemand":{"A":{"priceDimensions":{"B":{"pricePerUnit":{"USD":"0.0416"}}}}}}}"#;
        assert_eq!(parse_item(item, "USD"), Some(("t3.medium".to_owned(), 0.0416)));
        assert_eq!(parse_item(item, "CNY"), None);
        assert_eq!(parse_item("{}", "USD"), None);
    }
}
