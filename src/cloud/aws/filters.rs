//! Which instance types a launch asks for: the cheapest that fit, less what would waste money.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::instancetype::capacity::DEVICES;
use crate::api::labels;
use crate::api::v1::NodeClaim;
use crate::cloud::Error;
use crate::scheduling::instance_type::{InstanceType, Offering, sort_by_price};
use crate::scheduling::requirements::{Allow, Requirement, Requirements};
use crate::scheduling::resources::{Name, ResourceList};

/// Most instance types in one fleet request; Karpenter's number.
pub const MAX_TYPES: usize = 60;
/// With fewer types than this, a fallback from spot to on-demand is logged: it is likely to meet
/// insufficient capacity.
pub const FLEXIBLE: usize = 5;

type Types = Vec<Arc<InstanceType>>;
type Stage = fn(&Types, &Requirements) -> Option<Types>;

/// In order; each gives the types that stay, or nothing where it does not apply.
const STAGES: &[(&str, Stage)] = &[
    ("capacity-reservation-type-filter", one_kind_of_reservation),
    ("capacity-block-filter", one_capacity_block),
    ("reserved-offering-filter", fullest_reservation_of_a_zone),
    ("exotic-instance-filter", without_exotic),
    ("spot-offering-filter", without_dear_spot),
];

/// The types to ask for, cheapest first.
///
/// # Errors
/// [`Error::InsufficientCapacity`] when none is left, or too few for the claim's minValues.
pub fn for_launch(
    types: &[Arc<InstanceType>],
    claim: &NodeClaim,
    best_effort_min_values: bool,
) -> Result<Types, Error> {
    let requirements = Requirements::from_api(&claim.spec.requirements);
    let requests = ResourceList::from_quantities_lossy(
        claim.spec.resources.as_ref().and_then(|r| r.requests.as_ref()),
    );
    let mut kept: Types = types
        .iter()
        .filter(|t| {
            requirements.compatible(&t.requirements, Allow::WellKnown).is_ok()
                && fits(t, &requests, &requirements)
        })
        .cloned()
        .collect();
    for (name, stage) in STAGES {
        if kept.is_empty() {
            break;
        }
        if let Some(left) = stage(&kept, &requirements) {
            log_rejected(name, &kept, &left);
            kept = left;
        }
    }
    if kept.is_empty() {
        return Err(Error::InsufficientCapacity(
            "all requested instance types were unavailable during launch".into(),
        ));
    }
    sort_by_price(&mut kept, &requirements);
    // minValues are checked after this, since the cut may remove the variety they ask for.
    kept.truncate(MAX_TYPES);
    if let Some(problem) =
        unmet_min_values(&kept, &requirements).filter(|_| !best_effort_min_values)
    {
        let attempt =
            "truncating instance types based on the passed-in requirements, validating minValues";
        return Err(Error::InsufficientCapacity(format!("{attempt}, {problem}").into()));
    }
    Ok(kept)
}

fn fits(kind: &InstanceType, requests: &ResourceList, requirements: &Requirements) -> bool {
    kind.compatible_offerings(requirements).any(|o| requests.fits(&kind.allocatable_of(o)))
}

fn log_rejected(filter: &str, before: &Types, after: &Types) {
    let names: Vec<&str> = before
        .iter()
        .filter(|t| !after.iter().any(|k| k.name == t.name))
        .map(|t| &*t.name)
        .collect();
    if !names.is_empty() {
        tracing::debug!(
            "filter" = filter,
            "instance-types" = first_five(&names),
            "filtered out instance types from launch"
        );
    }
}

/// The first five names, and how many there are beside.
#[must_use]
pub fn first_five(names: &[&str]) -> String {
    let shown = names.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        0..=5 => shown,
        n => format!("{shown} and {} other(s)", n - 5),
    }
}

/// The requirement whose variety the types lack, if one does.
fn unmet_min_values(types: &Types, requirements: &Requirements) -> Option<String> {
    requirements.iter().find_map(|wanted| {
        let least = usize::try_from(wanted.min_values()?).ok()?;
        let mut values: Vec<&str> = types
            .iter()
            .filter_map(|t| t.requirements.get(wanted.key()))
            .flat_map(|r| r.values())
            .filter(|v| wanted.has(v))
            .collect();
        values.sort_unstable();
        values.dedup();
        (values.len() < least).then(|| {
            format!("minValues requirement is not met for label(s) (label(s)=[{}])", wanted.key())
        })
    })
}

fn allows_reserved(requirements: &Requirements) -> bool {
    requirements.get(labels::CAPACITY_TYPE).is_none_or(|r| r.has(labels::CAPACITY_RESERVED))
}

fn is_reserved(offering: &Offering) -> bool {
    offering.capacity_type() == labels::CAPACITY_RESERVED
}

/// Kinds of reservations, the one to be used first at equal price first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Default,
    Block,
    Interruptible,
}

fn kind_of(offering: &Offering) -> Kind {
    let is = |key: &str, value: &str| {
        offering.requirements.get(key).and_then(Requirement::single) == Some(value)
    };
    if is(labels::CAPACITY_RESERVATION_TYPE, "capacity-block") {
        Kind::Block
    } else if is(labels::CAPACITY_RESERVATION_INTERRUPTIBLE, "true") {
        Kind::Interruptible
    } else {
        Kind::Default
    }
}

/// The type with those offerings alone.
fn with_offerings(kind: &InstanceType, keep: impl Fn(&Offering) -> bool) -> Arc<InstanceType> {
    let mut copy = kind.clone();
    copy.offerings.retain(keep);
    Arc::new(copy)
}

/// A fleet takes reservations of one kind: that of the cheapest offering.
fn one_kind_of_reservation(types: &Types, requirements: &Requirements) -> Option<Types> {
    if !allows_reserved(requirements) {
        return None;
    }
    let (_, chosen) = types
        .iter()
        .flat_map(|t| t.compatible_offerings(requirements))
        .filter(|o| is_reserved(o))
        .map(|o| (o.price, kind_of(o)))
        .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))?;
    let of_kind = |o: &Offering| is_reserved(o) && kind_of(o) == chosen;
    let kept = types
        .iter()
        .filter(|t| t.compatible_offerings(requirements).any(of_kind))
        .map(|t| with_offerings(t, of_kind))
        .collect();
    Some(kept)
}

/// A fleet takes one capacity block: the cheapest.
fn one_capacity_block(types: &Types, requirements: &Requirements) -> Option<Types> {
    if !allows_reserved(requirements) {
        return None;
    }
    let first = types.iter().flat_map(|t| &t.offerings).find(|o| is_reserved(o))?;
    if kind_of(first) != Kind::Block {
        return None;
    }
    let cheapest = types
        .iter()
        .flat_map(|t| t.compatible_offerings(requirements).map(move |o| (t, o)))
        .filter(|(_, o)| is_reserved(o) && kind_of(o) == Kind::Block)
        .min_by(|(_, a), (_, b)| a.price.total_cmp(&b.price));
    Some(cheapest.into_iter().map(|(t, o)| only_offering(t, o)).collect())
}

fn only_offering(kind: &InstanceType, offering: &Offering) -> Arc<InstanceType> {
    let mut copy = kind.clone();
    copy.offerings = vec![offering.clone()];
    Arc::new(copy)
}

/// Of the reservations of a type in a zone, the one with most left.
fn fullest_reservation_of_a_zone(types: &Types, requirements: &Requirements) -> Option<Types> {
    if !allows_reserved(requirements) {
        return None;
    }
    let kept: Types = types
        .iter()
        .filter_map(|t| {
            // CreateFleet accepts one override per instance type and zone.
            let mut best: BTreeMap<&str, &Offering> = BTreeMap::new();
            for offering in t.compatible_offerings(requirements).filter(|o| is_reserved(o)) {
                let known = best.entry(offering.zone()).or_insert(offering);
                if offering.reservation_capacity > known.reservation_capacity {
                    *known = offering;
                }
            }
            let mut copy = (**t).clone();
            copy.offerings = best.into_values().cloned().collect();
            (!copy.offerings.is_empty()).then(|| Arc::new(copy))
        })
        .collect();
    (!kept.is_empty()).then_some(kept)
}

fn has_min_values(requirements: &Requirements) -> bool {
    requirements.iter().any(|r| r.min_values().is_some())
}

/// Leaves out metal and accelerated types unless nothing else is left.
fn without_exotic(types: &Types, requirements: &Requirements) -> Option<Types> {
    // Without these types there might be too few values for minValues.
    if has_min_values(requirements) {
        return None;
    }
    let exotic = |t: &InstanceType| {
        let size = t.requirements.get(labels::INSTANCE_SIZE).and_then(Requirement::single);
        size.is_some_and(|s| s.contains("metal"))
            || DEVICES.iter().any(|d| t.capacity.get(&Name::from(*d)) != 0)
    };
    let plain: Types = types.iter().filter(|t| !exotic(t)).cloned().collect();
    (!plain.is_empty()).then_some(plain)
}

/// Leaves out spot offerings that cost more than the cheapest on-demand one.
fn without_dear_spot(types: &Types, requirements: &Requirements) -> Option<Types> {
    let allowed = |kind: &str| requirements.get(labels::CAPACITY_TYPE).is_none_or(|r| r.has(kind));
    if has_min_values(requirements)
        || !allowed(labels::CAPACITY_SPOT)
        || !allowed(labels::CAPACITY_ON_DEMAND)
    {
        return None;
    }
    let cheapest = |kind: &str| {
        types
            .iter()
            .flat_map(|t| t.compatible_offerings(requirements))
            .filter(|o| o.capacity_type() == kind)
            .map(|o| o.price)
            .min_by(f64::total_cmp)
    };
    cheapest(labels::CAPACITY_SPOT)?;
    let limit = cheapest(labels::CAPACITY_ON_DEMAND)?;
    let dear = |o: &Offering| o.capacity_type() == labels::CAPACITY_SPOT && o.price > limit;
    let kept = types.iter().filter_map(|t| {
        if !t.offerings.iter().any(dear) {
            return Some(Arc::clone(t));
        }
        let left = with_offerings(t, |o| !dear(o));
        (!left.offerings.is_empty()).then_some(left)
    });
    Some(kept.collect())
}

/// The capacity type to ask for: reserved, else spot, else on-demand.
#[must_use]
pub fn capacity_type(types: &[Arc<InstanceType>], requirements: &Requirements) -> &'static str {
    [labels::CAPACITY_RESERVED, labels::CAPACITY_SPOT]
        .into_iter()
        .find(|kind| {
            requirements.get(labels::CAPACITY_TYPE).is_none_or(|r| r.has(kind))
                && types
                    .iter()
                    .flat_map(|t| t.compatible_offerings(requirements))
                    .any(|o| o.capacity_type() == *kind)
        })
        .unwrap_or(labels::CAPACITY_ON_DEMAND)
}

#[cfg(test)]
mod tests;
