//! Node overlays: changes of prices and capacities that an administrator asks for, checked against
//! each other and applied to instance types.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;

use super::instance_type::{InstanceType, Offering};
use super::requirements::{Allow, Requirement, Requirements};
use super::resources::{Name, ResourceList};
use crate::api::v1::{NodePool, Operator};
use crate::api::v1alpha1::NodeOverlay;
use crate::api::{checks, labels};

/// How an overlay changes a price.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PriceChange {
    /// Takes its place.
    Set(f64),
    /// Is added.
    Add(f64),
    /// Is added as a share of it, in percent.
    Percent(f64),
}

impl PriceChange {
    /// Reads `+0.5`, `-0.5`, `+10%` or `-10%`.
    ///
    /// # Errors
    /// When the text is none of these.
    pub fn parse_adjustment(text: &str) -> Result<Self, String> {
        let expected =
            || format!("invalid priceAdjustment {text:?}, expected a signed amount or percentage");
        if !text.starts_with(['+', '-']) {
            return Err(expected());
        }
        let (number, percent) = match text.strip_suffix('%') {
            Some(number) => (number, true),
            None => (text, false),
        };
        let value: f64 = number.parse().map_err(|_| expected())?;
        if !value.is_finite() || (percent && value < -100.0) {
            return Err(expected());
        }
        Ok(if percent { Self::Percent(value) } else { Self::Add(value) })
    }

    /// The changed price. An adjustment may be larger than the price, but a price below zero would
    /// make a node cheaper than none.
    #[must_use]
    pub fn of(self, price: f64) -> f64 {
        let changed = match self {
            Self::Set(amount) => amount,
            Self::Add(amount) => price + amount,
            Self::Percent(percent) => price * (1.0 + percent / 100.0),
        };
        changed.max(0.0)
    }
}

/// A NodePool and the instance types that its provider offers it, before any overlay.
#[derive(Clone, Debug)]
pub struct PoolTypes {
    /// The NodePool.
    pub pool: Arc<NodePool>,
    /// Its instance types.
    pub types: Arc<[Arc<InstanceType>]>,
}

/// What became of an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is in force wherever it matches.
    Applied,
    /// It cannot be used: why.
    Invalid(String),
    /// An overlay of the same weight changes the same price or resource, and nothing says which of
    /// the two counts.
    Conflict,
}

/// The changes of one instance type in one pool.
#[derive(Clone, Debug, Default, PartialEq)]
struct TypeChanges {
    /// By the offering's requirements as text: weight and change.
    prices: HashMap<String, (i32, PriceChange)>,
    /// Weight and amount.
    capacity: BTreeMap<Name, (i32, i64)>,
}

/// What all overlays in force change, by pool and instance type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Store {
    pools: HashMap<String, HashMap<Arc<str>, TypeChanges>>,
    /// Prices that overlays set for instance types by name, for types without a published one.
    prices: BTreeMap<String, f64>,
}

/// The overlays in force, shared by the controller that evaluates them and all who read prices and
/// capacities.
#[derive(Clone, Debug, Default)]
pub struct InForce(Arc<RwLock<Judged>>);

#[derive(Debug, Default)]
struct Judged {
    store: Option<Arc<Store>>,
    prices: Arc<BTreeMap<String, f64>>,
}

impl InForce {
    /// The current overlays. `None` until they were evaluated once: launching before that would
    /// ignore them.
    #[must_use]
    pub fn store(&self) -> Option<Arc<Store>> {
        self.0.read().store.clone()
    }

    /// Prices that overlays set for types by name; the same map as long as they are equal.
    #[must_use]
    pub fn prices(&self) -> Arc<BTreeMap<String, f64>> {
        Arc::clone(&self.0.read().prices)
    }

    /// Puts overlays in force.
    pub fn set(&self, store: Store) {
        let mut judged = self.0.write();
        if *judged.prices != store.prices {
            judged.prices = Arc::new(store.prices.clone());
        }
        judged.store = Some(Arc::new(store));
    }
}

/// An overlay, read.
struct Parsed {
    weight: i32,
    requirements: Requirements,
    price: Option<PriceChange>,
    capacity: ResourceList,
    /// The instance types named by the overlay, where that is its only requirement.
    types: Vec<String>,
}

/// Evaluates all overlays against all pools, and gives each overlay's verdict by its name.
#[must_use]
pub fn evaluate(
    overlays: &[Arc<NodeOverlay>],
    pools: &[PoolTypes],
) -> (Store, BTreeMap<String, Verdict>) {
    let mut store = Store::default();
    for pool in pools {
        // An empty entry distinguishes a pool that no overlay changes from one that was not evaluated yet,
        // which must wait.
        store.pools.insert(name_of(&pool.pool).to_owned(), HashMap::new());
    }
    let mut order: Vec<&Arc<NodeOverlay>> = overlays.iter().collect();
    // Heaviest first, so that a change once stored is never replaced. Equal weights go by
    // descending name as in Karpenter: of two that conflict, the last one in the alphabet is
    // applied.
    order.sort_by(|a, b| {
        let weight = |o: &NodeOverlay| o.spec.weight.unwrap_or(0);
        weight(b).cmp(&weight(a)).then_with(|| b.metadata.name.cmp(&a.metadata.name))
    });
    let mut verdicts = BTreeMap::new();
    for overlay in order {
        let name = overlay.metadata.name.clone().unwrap_or_default();
        let verdict = match Parsed::new(overlay) {
            Err(problem) => Verdict::Invalid(problem),
            Ok(parsed) => match store.check(&parsed, pools) {
                Some(matches) => {
                    store.add(&parsed, matches);
                    Verdict::Applied
                }
                None => Verdict::Conflict,
            },
        };
        verdicts.insert(name, verdict);
    }
    (store, verdicts)
}

fn name_of(pool: &NodePool) -> &str {
    pool.metadata.name.as_deref().unwrap_or_default()
}

/// An instance type that an overlay matches, with the offerings that it matches.
struct Match {
    pool: String,
    kind: Arc<str>,
    offerings: Vec<String>,
}

impl Store {
    /// Finds what an overlay matches. `None` when any of it conflicts: a conflicting overlay is
    /// applied nowhere, so that all pools are checked before anything is stored.
    fn check(&self, overlay: &Parsed, pools: &[PoolTypes]) -> Option<Vec<Match>> {
        let mut matches = Vec::new();
        for input in pools {
            let known = self.pools.get(name_of(&input.pool));
            for kind in input.types.iter() {
                let offerings = overlay.offerings(&input.pool, kind);
                if offerings.is_empty() {
                    continue;
                }
                let changes = known.and_then(|k| k.get(&kind.name));
                if changes.is_some_and(|c| c.conflicts(overlay, &offerings)) {
                    return None;
                }
                let pool = name_of(&input.pool).to_owned();
                matches.push(Match { pool, kind: Arc::clone(&kind.name), offerings });
            }
        }
        Some(matches)
    }

    /// Adds what an overlay changes; what heavier ones changed before stays.
    fn add(&mut self, overlay: &Parsed, matches: Vec<Match>) {
        if let Some(PriceChange::Set(price)) = overlay.price {
            for kind in &overlay.types {
                self.prices.entry(kind.clone()).or_insert(price);
            }
        }
        if overlay.price.is_none() && overlay.capacity.is_empty() {
            return;
        }
        for found in matches {
            let changes = self.pools.entry(found.pool).or_default().entry(found.kind).or_default();
            for offering in found.offerings.into_iter().filter(|_| overlay.price.is_some()) {
                if let Some(price) = overlay.price {
                    changes.prices.entry(offering).or_insert((overlay.weight, price));
                }
            }
            for (resource, amount) in overlay.capacity.iter() {
                changes.capacity.entry(resource.clone()).or_insert((overlay.weight, amount));
            }
        }
    }

    /// The types as the overlays change them; `None` for a pool that was not evaluated yet.
    #[must_use]
    pub fn apply(
        &self,
        pool: &str,
        types: &Arc<[Arc<InstanceType>]>,
    ) -> Option<Arc<[Arc<InstanceType>]>> {
        let changes = self.pools.get(pool)?;
        // The same list rather than an equal one: the solver recognizes a list that it has prepared
        // by its address.
        if changes.is_empty() {
            return Some(Arc::clone(types));
        }
        let changed = types.iter().map(|kind| match changes.get(&kind.name) {
            Some(changes) => Arc::new(changes.apply(kind)),
            None => Arc::clone(kind),
        });
        Some(changed.collect())
    }

    /// Resources that overlays add to an instance type of a pool.
    #[must_use]
    pub fn capacity(&self, pool: &str, instance_type: &str) -> ResourceList {
        let changes = self.pools.get(pool).and_then(|p| p.get(instance_type));
        changes
            .into_iter()
            .flat_map(|c| &c.capacity)
            .map(|(name, (_, amount))| (name.clone(), *amount))
            .collect()
    }
}

impl TypeChanges {
    fn conflicts(&self, overlay: &Parsed, offerings: &[String]) -> bool {
        let same = |weight: i32| weight == overlay.weight;
        let price = overlay.price.is_some()
            && offerings.iter().any(|o| self.prices.get(o).is_some_and(|(w, _)| same(*w)));
        price
            || overlay
                .capacity
                .iter()
                .any(|(name, _)| self.capacity.get(name).is_some_and(|(w, _)| same(*w)))
    }

    fn apply(&self, kind: &InstanceType) -> InstanceType {
        let mut changed = kind.clone();
        for offering in &mut changed.offerings {
            if let Some((_, change)) = self.prices.get(&identity(offering)) {
                offering.price = change.of(offering.price);
                // A price that the administrator set is known.
                offering.price_estimated &= !matches!(change, PriceChange::Set(_));
                offering.price_overlay = true;
            }
        }
        for (name, (_, amount)) in &self.capacity {
            changed.capacity.set(name.clone(), *amount);
            changed.capacity_overlay = true;
        }
        changed
    }
}

/// The text that identifies an offering within its type, as in Karpenter.
fn identity(offering: &Offering) -> String {
    offering.requirements.to_string()
}

impl Parsed {
    fn new(overlay: &NodeOverlay) -> Result<Self, String> {
        let spec = &overlay.spec;
        let problems = checks::nodeoverlay::check(overlay);
        if !problems.is_empty() {
            let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
            return Err(texts.join("; "));
        }
        let price = match (&spec.price, &spec.price_adjustment) {
            (Some(text), _) => {
                let amount = text.parse::<f64>().ok().filter(|p| p.is_finite() && *p >= 0.0);
                Some(PriceChange::Set(amount.ok_or_else(|| {
                    format!("invalid price {text:?}, expected an amount of zero or more")
                })?))
            }
            (None, Some(text)) => Some(PriceChange::parse_adjustment(text)?),
            (None, None) => None,
        };
        let empty = BTreeMap::new();
        let capacity = ResourceList::from_quantities(spec.capacity.as_ref().unwrap_or(&empty))
            .map_err(|e| format!("invalid capacity, {e}"))?;
        Ok(Self {
            weight: spec.weight.unwrap_or(0),
            requirements: spec
                .requirements
                .iter()
                .map(|r| Requirement::new(&r.key, r.operator, &r.values))
                .collect(),
            price,
            capacity,
            // A set price can stand in for one that is not published only where it is plain which
            // types it is for: any second requirement may narrow it to some of their offerings.
            types: match spec.requirements.as_slice() {
                [only] if only.operator == Operator::In => {
                    let of_type = labels::normalize(&only.key) == labels::INSTANCE_TYPE;
                    only.values.iter().filter(|_| of_type).cloned().collect()
                }
                _ => Vec::new(),
            },
        })
    }

    /// The offerings of a pool's instance type that the overlay matches.
    fn offerings(&self, pool: &NodePool, kind: &InstanceType) -> Vec<String> {
        let template = &pool.spec.template.metadata.labels;
        let mut all = kind.requirements.clone();
        all.merge(&Requirements::from_labels(template.iter().flatten()));
        all.add(Requirement::is(labels::NODEPOOL, name_of(pool)));
        // Strictly: an overlay that asks for a label which the type does not have matches nothing,
        // even if the label is well known.
        if all.compatible(&self.requirements, Allow::Nothing).is_err() {
            return Vec::new();
        }
        let matching =
            kind.offerings.iter().filter(|o| o.requirements.intersects(&self.requirements).is_ok());
        matching.map(identity).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn kind(name: &str, zones: &[&str], price: f64) -> Arc<InstanceType> {
        let offerings = zones
            .iter()
            .map(|zone| Offering {
                requirements: [
                    Requirement::is(labels::ZONE, zone),
                    Requirement::is(labels::CAPACITY_TYPE, "spot"),
                ]
                .into_iter()
                .collect(),
                price,
                available: true,
                ..Offering::default()
            })
            .collect();
        Arc::new(InstanceType {
            name: Arc::from(name),
            requirements: [
                Requirement::is(labels::INSTANCE_TYPE, name),
                Requirement::new(labels::ZONE, Operator::In, zones),
                Requirement::is(labels::CAPACITY_TYPE, "spot"),
            ]
            .into_iter()
            .collect(),
            offerings,
            ..InstanceType::default()
        })
    }

    fn pools() -> Vec<PoolTypes> {
        let types: Arc<[_]> = Arc::new([kind("a", &["x", "y"], 1.0), kind("b", &["x"], 2.0)]);
        let pool = NodePool::new("p", serde_json::from_value(json!({})).unwrap());
        vec![PoolTypes { pool: Arc::new(pool), types }]
    }

    fn overlay(name: &str, spec: Value) -> Arc<NodeOverlay> {
        Arc::new(NodeOverlay::new(name, serde_json::from_value(spec).unwrap()))
    }

    fn only(key: &str, value: &str) -> Value {
        json!([{"key": key, "operator": "In", "values": [value]}])
    }

    /// Prices of type `a` in its zones, then of type `b`.
    fn prices(overlays: &[Arc<NodeOverlay>]) -> Vec<f64> {
        let pools = pools();
        let (store, _) = evaluate(overlays, &pools);
        let types = store.apply("p", &pools[0].types).unwrap();
        types.iter().flat_map(|t| &t.offerings).map(|o| o.price).collect()
    }

    #[test]
    fn prices_change_where_the_overlay_matches() {
        let zone = overlay("o", json!({"requirements": only(labels::ZONE, "x"), "price": "0.5"}));
        assert_eq!(prices(&[zone]), [0.5, 1.0, 0.5]);
        let kind =
            json!({"requirements": only(labels::INSTANCE_TYPE, "a"), "priceAdjustment": "+10%"});
        assert_eq!(prices(&[overlay("o", kind)]), [1.1, 1.1, 2.0]);
        let down = json!({"requirements": only(labels::NODEPOOL, "p"), "priceAdjustment": "-1.5"});
        assert_eq!(prices(&[overlay("o", down)]), [0.0, 0.0, 0.5]);
        let other = json!({"requirements": only(labels::NODEPOOL, "q"), "price": "7"});
        assert_eq!(prices(&[overlay("o", other)]), [1.0, 1.0, 2.0]);
    }

    #[test]
    fn overlays_that_name_types_alone_price_them() {
        let overlays = [
            overlay("t", json!({"requirements": only(labels::INSTANCE_TYPE, "a"), "price": "3"})),
            overlay("z", json!({"requirements": only(labels::ZONE, "y"), "price": "9"})),
            overlay(
                "h",
                json!({"requirements": only(labels::INSTANCE_TYPE, "a"), "price": "4", "weight": 2}),
            ),
            overlay(
                "c",
                json!({"requirements": only(labels::INSTANCE_TYPE, "b"), "priceAdjustment": "+1"}),
            ),
        ];
        let (store, _) = evaluate(&overlays, &pools());
        assert_eq!(store.prices, BTreeMap::from([("a".to_owned(), 4.0)]));
        let in_force = InForce::default();
        assert!(in_force.store().is_none() && in_force.prices().is_empty());
        in_force.set(store.clone());
        let prices = in_force.prices();
        in_force.set(store);
        assert!(Arc::ptr_eq(&prices, &in_force.prices()));
    }

    #[test]
    fn the_heavier_overlay_wins() {
        let heavy = overlay(
            "h",
            json!({"requirements": only(labels::ZONE, "x"), "price": "5", "weight": 9}),
        );
        let light = overlay("l", json!({"requirements": [], "price": "7"}));
        assert_eq!(prices(&[light, heavy]), [5.0, 7.0, 5.0]);
    }

    #[test]
    fn equal_weights_conflict_and_the_later_one_is_left_out() {
        let one = overlay("a", json!({"requirements": only(labels::ZONE, "x"), "price": "5"}));
        let two = overlay("b", json!({"requirements": [], "price": "5"}));
        let pools = pools();
        let (_, verdicts) = evaluate(&[one.clone(), two.clone()], &pools);
        assert_eq!(verdicts["b"], Verdict::Applied);
        assert_eq!(verdicts["a"], Verdict::Conflict);
        assert_eq!(prices(&[one, two]), [5.0, 5.0, 5.0]);
    }

    #[test]
    fn capacity_merges_by_resource() {
        let one = json!({"requirements": only(labels::ZONE, "y"), "weight": 2,
            "capacity": {"example.com/a": "1"}});
        let two =
            json!({"requirements": [], "capacity": {"example.com/a": "9", "example.com/b": "2"}});
        let pools = pools();
        let (store, verdicts) = evaluate(&[overlay("o", one), overlay("q", two.clone())], &pools);
        assert!(verdicts.values().all(|v| *v == Verdict::Applied));
        let types = store.apply("p", &pools[0].types).unwrap();
        assert_eq!(types[0].capacity.get(&Name::from("example.com/a")), 1);
        assert_eq!(types[1].capacity.get(&Name::from("example.com/a")), 9);
        assert!(types[0].capacity_overlay);
        assert_eq!(store.capacity("p", "b").get(&Name::from("example.com/b")), 2);
        let (_, verdicts) = evaluate(&[overlay("o", two.clone()), overlay("q", two)], &pools);
        assert_eq!(verdicts["o"], Verdict::Conflict);
    }

    #[test]
    fn a_type_keeps_its_devices_and_volume_limits_under_an_overlay() {
        let mut pools = pools();
        let device = crate::scheduling::dra::TypePool { driver: "d".into(), ..Default::default() };
        for pool in &mut pools {
            let types = pool.types.iter().map(|kind| {
                let mut kind = (**kind).clone();
                kind.volume_limits.insert("ebs".to_owned(), 7);
                kind.devices = [device.clone()].into();
                Arc::new(kind)
            });
            pool.types = types.collect();
        }
        let more = json!({"requirements": [], "price": "5", "capacity": {"example.com/a": "1"}});
        let (store, _) = evaluate(&[overlay("o", more)], &pools);
        let types = store.apply("p", &pools[0].types).unwrap();
        assert!(types[0].capacity_overlay);
        for kind in &types[..] {
            assert_eq!(kind.volume_limits["ebs"], 7);
            assert_eq!(kind.devices[..], *std::slice::from_ref(&device));
        }
    }

    #[test]
    fn what_cannot_be_used_is_reported() {
        let verdict = |spec: Value| evaluate(&[overlay("o", spec)], &pools()).1["o"].clone();
        for bad in [
            json!({"requirements": [], "capacity": {"cpu": "1"}}),
            json!({"requirements": [], "capacity": {"aws.amazon.com/neuron": "1"}}),
            json!({"requirements": [], "price": "much"}),
            json!({"requirements": [], "priceAdjustment": "10%"}),
            json!({"requirements": [], "priceAdjustment": "-150%"}),
            json!({"requirements": [{"key": "a", "operator": "NotIn"}]}),
            json!({"requirements": only("kubernetes.io/hostname", "h")}),
            json!({"requirements": only("karpenter.sh/capacity-type", "cheap")}),
        ] {
            assert!(matches!(verdict(bad.clone()), Verdict::Invalid(_)), "{bad}");
        }
        assert_eq!(verdict(json!({"requirements": []})), Verdict::Applied);
    }

    #[test]
    fn a_pool_that_was_not_judged_is_distinguished() {
        let (store, _) = evaluate(&[], &pools());
        assert!(store.apply("q", &pools()[0].types).is_none());
        assert!(store.apply("p", &pools()[0].types).is_some());
    }
}
