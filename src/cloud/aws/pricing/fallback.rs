//! Prices compiled in: near enough to order types by until the price list has been read.

use std::collections::HashMap;

/// By type, USD an hour in us-east-1; `data/README.md` tells where they come from.
const PRICES: &str = include_str!("../../../../data/on-demand-prices.csv");
/// By region, how dear it is beside us-east-1.
const REGIONS: &str = include_str!("../../../../data/price-regions.csv");

/// On-demand prices of a region; one that is not known costs what us-east-1 does.
pub(super) fn on_demand(region: &str) -> HashMap<String, f64> {
    let factor = rows(REGIONS).find(|(name, _)| *name == region).map_or(1.0, |(_, f)| f);
    rows(PRICES)
        .map(|(name, price)| {
            // As many digits as price lists have.
            let price = (price * factor * 1e5).round() / 1e5;
            (name.to_owned(), price)
        })
        .collect()
}

/// Names and numbers of a file with a heading.
fn rows(text: &'static str) -> impl Iterator<Item = (&'static str, f64)> {
    text.lines().skip(1).filter_map(|line| {
        let mut cells = line.split(',');
        Some((cells.next()?, cells.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_whole() {
        let prices = on_demand("us-east-1");
        assert_eq!(prices.len(), PRICES.lines().count() - 1);
        assert!(prices.values().all(|p| *p > 0.0 && *p < 1000.0));
        for (name, price) in
            [("t3.medium", 0.0416), ("m5.large", 0.096), ("c5.4xlarge", 0.68), ("r5.large", 0.126)]
        {
            assert_eq!(prices[name], price, "{name}");
        }
        assert_eq!(on_demand("nowhere-1"), prices);
        assert!(on_demand("sa-east-1")["m5.large"] > 0.14);
    }

    #[test]
    fn larger_sizes_cost_more() {
        let prices = on_demand("us-east-1");
        for family in ["m5", "c6g", "r7i", "m8g", "c8i"] {
            let sizes = ["large", "xlarge", "2xlarge", "4xlarge", "8xlarge"];
            let list: Vec<f64> = sizes.iter().map(|s| prices[&format!("{family}.{s}")]).collect();
            assert!(list.is_sorted(), "{family}: {list:?}");
        }
    }
}
