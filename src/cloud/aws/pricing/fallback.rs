//! Prices compiled in: those that AWS published for some regions, and estimates for all others.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Price, Source};

/// Published prices by region and type; `data/README.md` names their source.
const PUBLISHED: &str = include_str!("../../../../data/on-demand-prices.csv");
/// Types without a published price anywhere, USD an hour in us-east-1, as the generation before
/// them suggests.
const ESTIMATED: &str = include_str!("../../../../data/estimated-prices.csv");
/// How dear a region is beside us-east-1, where no price of the region is published.
const REGIONS: &str = include_str!("../../../../data/price-regions.csv");
/// The region that the others are compared with.
const BASE: &str = "us-east-1";
/// Digits after the point that price lists have.
const DIGITS: f64 = 1e5;

type Prices = HashMap<&'static str, f64>;

/// On-demand prices of a region, in its currency; those that are not published are marked.
///
/// A type without a price in the region costs what it does in us-east-1, times the ratio of the
/// two regions. A region that no table knows costs what us-east-1 does.
pub(super) fn on_demand(region: &str) -> HashMap<String, Price> {
    let published = published();
    let mut prices: HashMap<String, Price> = HashMap::new();
    let ratio = ratio(&published, region);
    for (name, base) in base(&published) {
        let amount = (base * ratio * DIGITS).round() / DIGITS;
        prices.insert(name.to_owned(), Price { amount, source: Source::Estimate });
    }
    for (name, amount) in published.get(region).into_iter().flatten() {
        let price = Price { amount: *amount, source: Source::Table };
        prices.insert((*name).to_owned(), price);
    }
    prices
}

/// Types that have a published price in some region, and none in this one although its prices are
/// published: they are not offered there. Nothing is known of a region without published prices.
pub(super) fn not_offered(region: &str) -> BTreeSet<&'static str> {
    let published = published();
    let Some(known) = published.get(region) else { return BTreeSet::new() };
    let all = published.values().flat_map(HashMap::keys).copied();
    all.filter(|name| !known.contains_key(name)).collect()
}

/// What types cost in us-east-1, by whatever is known.
fn base(published: &BTreeMap<&'static str, Prices>) -> Prices {
    let mut prices: Prices = cells(ESTIMATED).filter_map(|[name, usd]| pair(name, usd)).collect();
    for (region, known) in published.iter().filter(|(region, _)| **region != BASE) {
        let ratio = ratio(published, region);
        prices.extend(known.iter().map(|(name, price)| (*name, price / ratio)));
    }
    prices.extend(published.get(BASE).into_iter().flatten().map(|(name, price)| (*name, *price)));
    prices
}

/// How dear a region is beside us-east-1, its currency included: the median over the types that
/// have a price in both, else what the table of regions has.
fn ratio(published: &BTreeMap<&'static str, Prices>, region: &str) -> f64 {
    // One list of prices covers both regions of a partition with a currency of its own.
    let like = if region.starts_with("cn-") { "cn-north-1" } else { region };
    let base = published.get(BASE);
    let known = published.get(like).into_iter().flatten();
    let mut ratios: Vec<f64> =
        known.filter_map(|(name, price)| Some(price / base?.get(name)?)).collect();
    if ratios.is_empty() {
        let listed = cells(REGIONS).find(|[name, _]| *name == region);
        return listed.and_then(|[_, factor]| factor.parse().ok()).unwrap_or(1.0);
    }
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

fn published() -> BTreeMap<&'static str, Prices> {
    let mut regions: BTreeMap<&str, Prices> = BTreeMap::new();
    for [region, name, price] in cells(PUBLISHED) {
        if let Some((name, price)) = pair(name, price) {
            regions.entry(region).or_default().insert(name, price);
        }
    }
    regions
}

fn pair(name: &'static str, number: &'static str) -> Option<(&'static str, f64)> {
    Some((name, number.parse().ok()?))
}

/// The first cells of each line of a file with a heading.
fn cells<const N: usize>(text: &'static str) -> impl Iterator<Item = [&'static str; N]> {
    text.lines().skip(1).filter_map(|line| {
        let cells: Vec<&str> = line.split(',').take(N).collect();
        cells.try_into().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_prices_stand_as_they_are() {
        let rows = PUBLISHED.lines().skip(1);
        assert_eq!(rows.clone().count(), 3002);
        for line in rows {
            let cells: Vec<&str> = line.split(',').collect();
            let [region, name, price, currency, day] = cells.as_slice() else {
                panic!("{line}");
            };
            assert!(price.parse::<f64>().unwrap() > 0.0, "{line}");
            assert_eq!(*currency, if region.starts_with("cn-") { "CNY" } else { "USD" }, "{line}");
            assert!(day.parse::<jiff::civil::Date>().is_ok(), "{line}");
            assert!(!name.is_empty());
        }
        for (region, name, amount) in [
            ("us-east-1", "t3.nano", 0.0052),
            ("us-east-1", "g5g.xlarge", 0.42),
            ("us-east-1", "p4d.24xlarge", 21.9576),
            ("us-gov-west-1", "t3.small", 0.0244),
            ("us-gov-west-1", "g6.xlarge", 1.0144),
        ] {
            let price = on_demand(region)[name];
            assert_eq!(price, Price { amount, source: Source::Table }, "{region} {name}");
        }
    }

    #[test]
    fn other_prices_come_from_the_regions_ratio_and_are_marked() {
        let base = on_demand("us-east-1");
        for (region, least, most) in [
            ("sa-east-1", 1.5, 1.7),
            ("eu-west-1", 1.0, 1.3),
            ("nowhere-1", 1.0, 1.0),
            // In CNY.
            ("cn-northwest-1", 8.0, 12.0),
        ] {
            let prices = on_demand(region);
            assert_eq!(prices.len(), base.len(), "{region}");
            let price = prices["m5.large"];
            assert!(price.is_estimated(), "{region}");
            let ratio = price.amount / base["m5.large"].amount;
            assert!((least..=most).contains(&ratio), "{region}: {ratio}");
        }
        // Published in another region alone, and not at all.
        for name in ["hpc7a.96xlarge", "r9g.large"] {
            assert!(base[name].is_estimated() && base[name].amount > 0.1, "{name}");
        }
        let gov = on_demand("us-gov-east-1");
        assert!(!gov["m5.large"].is_estimated());
        assert!(gov["m8a.large"].is_estimated() || gov["a1.large"].is_estimated());
    }

    #[test]
    fn larger_sizes_cost_more() {
        for region in ["us-east-1", "eu-central-1"] {
            let prices = on_demand(region);
            for family in ["m5", "c6g", "r7i", "m8g", "c8i", "t3", "t4g"] {
                let sizes = ["large", "xlarge", "2xlarge"];
                let price = |size: &&str| prices[&format!("{family}.{size}")].amount;
                let list: Vec<f64> = sizes.iter().map(price).collect();
                assert!(list.is_sorted(), "{family}: {list:?}");
            }
        }
    }
}
