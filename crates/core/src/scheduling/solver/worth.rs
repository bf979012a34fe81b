//! What resources are worth: the dual of the cheapest fractional packing.
//!
//! With demand d, machines a_i at prices p_i, the cheapest mix of fractions of machines costs
//! min p·x with Σ x_i a_i >= d. Its dual, max d·y with a_i·y <= p_i, gives each resource a worth y
//! such that no machine is worth more than it costs. The dual has few variables and starts from the
//! feasible y = 0, so the plain simplex method on a table solves it in a few pivots.

/// A machine: amounts and price.
pub(super) struct Machine<'a> {
    pub(super) amounts: &'a [i64],
    pub(super) price: f64,
}

/// Pivots after which the answer so far must do; a handful is usual.
const MOST_PIVOTS: usize = 200;
const TINY: f64 = 1e-9;

/// The worth of one unit of each resource; zero for what is not scarce.
pub(super) fn worth(demand: &[i64], machines: &[Machine<'_>]) -> Vec<f64> {
    let width = demand.len();
    if machines.is_empty() {
        return vec![0.0; width];
    }
    // Amounts differ by nine orders of magnitude: each resource is measured by the largest machine.
    let scale: Vec<f64> = (0..width)
        .map(|r| machines.iter().map(|m| m.amounts[r]).max().unwrap_or(0).max(1) as f64)
        .collect();
    let total = demand.iter().zip(&scale).map(|(d, s)| *d as f64 / s).fold(TINY, f64::max);
    let mut table: Vec<Vec<f64>> = machines
        .iter()
        .map(|m| {
            let mut row: Vec<f64> =
                m.amounts.iter().zip(&scale).map(|(a, s)| *a as f64 / s).collect();
            row.push(m.price);
            row
        })
        .collect();
    let mut goal: Vec<f64> =
        demand.iter().zip(&scale).map(|(d, s)| *d as f64 / s / total).collect();
    // Which variable each column stands for now: a worth below `width`, else a machine's slack.
    let mut columns: Vec<usize> = (0..width).collect();
    let mut rows: Vec<usize> = (0..machines.len()).map(|m| width + m).collect();
    for _ in 0..MOST_PIVOTS {
        let Some(column) = entering(&goal) else { break };
        let Some(row) = leaving(&table, column, width) else { break };
        pivot(&mut table, &mut goal, row, column);
        std::mem::swap(&mut columns[column], &mut rows[row]);
    }
    let mut worth = vec![0.0; width];
    for (row, variable) in rows.iter().enumerate() {
        if *variable < width {
            worth[*variable] = (table[row][width] / scale[*variable]).max(0.0);
        }
    }
    worth
}

fn entering(goal: &[f64]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (at, value) in goal.iter().enumerate() {
        if *value > TINY && best.is_none_or(|b| *value > goal[b]) {
            best = Some(at);
        }
    }
    best
}

fn leaving(table: &[Vec<f64>], column: usize, width: usize) -> Option<usize> {
    let mut best: Option<(f64, usize)> = None;
    for (at, row) in table.iter().enumerate() {
        if row[column] > TINY {
            let ratio = row[width] / row[column];
            if best.is_none_or(|(b, _)| ratio < b) {
                best = Some((ratio, at));
            }
        }
    }
    best.map(|(_, at)| at)
}

fn pivot(table: &mut [Vec<f64>], goal: &mut [f64], row: usize, column: usize) {
    let by = table[row][column];
    for (at, value) in table[row].iter_mut().enumerate() {
        *value = if at == column { 1.0 / by } else { *value / by };
    }
    let source = table[row].clone();
    for (at, target) in table.iter_mut().enumerate() {
        let factor = target[column];
        if at == row || factor == 0.0 {
            continue;
        }
        for (k, value) in target.iter_mut().enumerate() {
            *value = if k == column { -factor * source[k] } else { *value - factor * source[k] };
        }
    }
    let factor = goal[column];
    for (k, value) in goal.iter_mut().enumerate() {
        *value = if k == column { -factor * source[k] } else { *value - factor * source[k] };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_of_two_machines_prices_both_resources() {
        let machines = [
            Machine { amounts: &[4, 8], price: 1.0 },
            Machine { amounts: &[4, 16], price: 1.2 },
            Machine { amounts: &[4, 8], price: 3.0 },
        ];
        let worth = worth(&[40, 120], &machines);
        // 4a + 8b = 1 and 4a + 16b = 1.2.
        assert!((worth[0] - 0.2).abs() < 1e-6 && (worth[1] - 0.025).abs() < 1e-6, "{worth:?}");
    }

    #[test]
    fn what_is_plentiful_is_worth_nothing() {
        let machines = [Machine { amounts: &[4, 1 << 40], price: 2.0 }];
        let worth = worth(&[4, 1], &machines);
        assert!((worth[0] - 0.5).abs() < 1e-6 && worth[1] < 1e-9, "{worth:?}");
    }

    proptest::proptest! {
        #[test]
        fn no_machine_is_worth_more_than_it_costs(
            machines in proptest::collection::vec((1_i64..100, 1_i64..1000, 1_u32..100), 1..20),
            demand in (1_i64..1000, 1_i64..10_000),
        ) {
            let amounts: Vec<[i64; 2]> = machines.iter().map(|m| [m.0, m.1]).collect();
            let list: Vec<Machine<'_>> = machines
                .iter()
                .zip(&amounts)
                .map(|(m, a)| Machine { amounts: a, price: f64::from(m.2) })
                .collect();
            let y = worth(&[demand.0, demand.1], &list);
            for m in &list {
                let value: f64 = m.amounts.iter().zip(&y).map(|(a, y)| *a as f64 * y).sum();
                proptest::prop_assert!(value <= m.price * (1.0 + 1e-6));
            }
        }
    }
}
