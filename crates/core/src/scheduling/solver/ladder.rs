//! The cheapest row for some amounts, without a look at every row.

use fixedbitset::FixedBitSet;

use super::amounts::fits;

/// Rows in rising order of price, without those that hold nothing which a cheaper one does not hold.
pub(super) struct Ladder {
    prices: Vec<f64>,
    /// Amounts for pods; flat.
    amounts: Vec<i64>,
}

impl Ladder {
    /// The ladder of these rows, with what they cost and, flat, what they hold.
    pub(super) fn new(rows: &FixedBitSet, prices: &[f64], net: &[i64], width: usize) -> Self {
        let row = |r: usize| &net[r * width..(r + 1) * width];
        let mut order: Vec<usize> = rows.ones().filter(|r| prices[*r].is_finite()).collect();
        order.sort_by(|a, b| prices[*a].total_cmp(&prices[*b]));
        let mut ladder = Self { prices: Vec::new(), amounts: Vec::new() };
        for r in order {
            if ladder.cheapest(row(r)).is_infinite() {
                ladder.prices.push(prices[r]);
                ladder.amounts.extend_from_slice(row(r));
            }
        }
        ladder
    }

    /// The price of the first row that holds these amounts; infinite when none does.
    pub(super) fn cheapest(&self, requests: &[i64]) -> f64 {
        let rows = self.amounts.chunks_exact(requests.len().max(1));
        let found = self.prices.iter().zip(rows).find(|(_, amounts)| fits(requests, amounts));
        found.map_or(f64::INFINITY, |(price, _)| *price)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn the_price_is_that_of_the_cheapest_row_that_holds_the_amounts(
            rows in proptest::collection::vec((0_i64..20, 0_i64..20, 0_u32..9), 0..40),
            left_out in 0_usize..40,
            requests in (0_i64..20, 0_i64..20),
        ) {
            let net: Vec<i64> = rows.iter().flat_map(|r| [r.0, r.1]).collect();
            // Price 0 stands for a row without an offering.
            let price = |r: &(i64, i64, u32)| if r.2 == 0 { f64::INFINITY } else { f64::from(r.2) };
            let prices: Vec<f64> = rows.iter().map(price).collect();
            let mut usable = FixedBitSet::with_capacity(rows.len());
            usable.extend((0..rows.len()).filter(|r| *r != left_out));
            let ladder = Ladder::new(&usable, &prices, &net, 2);
            let wanted = [requests.0, requests.1];
            let expected = usable
                .ones()
                .filter(|r| fits(&wanted, &net[r * 2..r * 2 + 2]))
                .map(|r| prices[r])
                .fold(f64::INFINITY, f64::min);
            proptest::prop_assert_eq!(ladder.cheapest(&wanted), expected);
        }
    }
}
