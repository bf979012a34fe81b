//! What the choice of instance types saves against the best single type.

use std::collections::BTreeMap;

use crate::scheduling::resources::ResourceList;
use crate::scheduling::results::PlannedClaim;

/// What a round's NodeClaims save an hour, by NodePool, against as many nodes of the one type that
/// would be cheapest for the same requests. Those are counted by resources alone, as if pods could
/// be cut into pieces, so the saving is rather too small than too large.
#[must_use]
pub fn saved_per_hour(claims: &[PlannedClaim]) -> BTreeMap<String, f64> {
    let mut by_pool: BTreeMap<&str, Vec<&PlannedClaim>> = BTreeMap::new();
    for claim in claims {
        let pool = claim.node_pool.metadata.name.as_deref().unwrap_or_default();
        by_pool.entry(pool).or_default().push(claim);
    }
    let saved = by_pool.into_iter().filter_map(|(pool, claims)| {
        let planned: f64 =
            claims.iter().map(|c| c.cheapest().map(|(_, o)| o.price)).sum::<Option<f64>>()?;
        let single = cheapest_single_type(&claims)?;
        Some((pool.to_owned(), (single - planned).max(0.0)))
    });
    saved.filter(|(_, dollars)| *dollars > 0.0).collect()
}

/// The price of the cheapest set of nodes of one type that all claims could use.
fn cheapest_single_type(claims: &[&PlannedClaim]) -> Option<f64> {
    let (first, others) = claims.split_first()?;
    let mut requests = ResourceList::new();
    claims.iter().for_each(|c| requests.add(&c.requests));
    let usable = first.instance_types.iter().filter(|kind| {
        others.iter().all(|c| c.instance_types.iter().any(|other| other.name == kind.name))
    });
    let prices = usable.filter_map(|kind| {
        let price = kind.cheapest(&first.requirements)?.price;
        let count = nodes_for(&requests, &kind.allocatable())?;
        Some(price * count)
    });
    prices.min_by(f64::total_cmp)
}

#[allow(clippy::cast_precision_loss, reason = "a number of nodes is a small number")]
fn nodes_for(requests: &ResourceList, allocatable: &ResourceList) -> Option<f64> {
    let mut most = 1_i64;
    for (name, wanted) in requests.iter().filter(|(_, wanted)| *wanted > 0) {
        let each = allocatable.get(name);
        if each <= 0 {
            return None;
        }
        most = most.max((wanted + each - 1) / each);
    }
    Some(most as f64)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::api::labels;
    use crate::api::v1::NodePool;
    use crate::scheduling::instance_type::{InstanceType, Offering};
    use crate::scheduling::requirements::{Requirement, Requirements};
    use crate::scheduling::resources::Name;

    fn kind(name: &str, cpu: i64, price: f64) -> Arc<InstanceType> {
        let requirements: Requirements =
            [Requirement::is(labels::CAPACITY_TYPE, "spot"), Requirement::is(labels::ZONE, "a")]
                .into_iter()
                .collect();
        Arc::new(InstanceType {
            name: Arc::from(name),
            capacity: [(Name::Cpu, cpu)].into_iter().collect(),
            offerings: vec![Offering {
                requirements,
                price,
                available: true,
                ..Offering::default()
            }],
            ..InstanceType::default()
        })
    }

    fn claim(cpu: i64, types: &[&Arc<InstanceType>]) -> PlannedClaim {
        PlannedClaim {
            node_pool: Arc::new(NodePool::new("default", Default::default())),
            requirements: Requirements::new(),
            taints: Vec::new(),
            requests: [(Name::Cpu, cpu)].into_iter().collect(),
            instance_types: types.iter().copied().cloned().collect::<Vec<_>>().into(),
            pods: Vec::new(),
            min_values_relaxed: false,
            devices: None,
        }
    }

    #[test]
    fn two_types_together_can_be_cheaper_than_either_alone() {
        let (small, large) = (kind("small", 2000, 0.12), kind("large", 8000, 0.4));
        // 10 cores: five small ones are 0.6, two large ones 0.8, one of each 0.52.
        let claims = [claim(8000, &[&large, &small]), claim(2000, &[&small, &large])];
        let saved = saved_per_hour(&claims);
        assert!((saved["default"] - 0.08).abs() < 1e-9, "{saved:?}");
        // A single node saves nothing against itself.
        assert!(saved_per_hour(&claims[..1]).is_empty());
    }
}
