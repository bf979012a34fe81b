//! Does a pod that was left over really fit nowhere?

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use super::check::{self, World, normal};
use super::label::Label;
use super::model::{self, Amounts, Expression, HOSTNAME, OfferingDoc, TypeDoc};
use super::place::{self, Kind, Place};
use super::topology::{self, Kind as RuleKind, Rule};

/// A node on which a left-over pod would have a place, if there is one.
pub fn somewhere(world: &World<'_>, pod: &Pod) -> Option<String> {
    let searcher = Searcher::new(world, pod);
    for place in &world.places {
        let fits = match &place.kind {
            Kind::Existing { .. } => searcher.existing(place),
            Kind::New { .. } => searcher.claim(place),
        };
        if fits {
            return Some(place.name.clone());
        }
    }
    let mut pools: Vec<_> = world.doc.node_pools.iter().collect();
    pools.retain(|p| p.spec.replicas.is_none());
    pools.into_iter().find_map(|pool| {
        let name = pool.metadata.name.clone().unwrap_or_default();
        searcher.fresh(pool, &name).then(|| format!("a new node of {name}"))
    })
}

/// Whether a rule by a domain that nodes share ties the pod to pods on nodes that are only planned.
pub fn depends_on_this_round(world: &World<'_>, pod: &Pod) -> bool {
    let planned = || {
        let places = world.places.iter().filter(|p| matches!(p.kind, Kind::New { .. }));
        places.flat_map(|p| &p.placed)
    };
    let shared = |rule: &Rule| rule.key != HOSTNAME;
    let own = topology::rules(pod, &world.objects);
    own.iter().any(|rule| shared(rule) && planned().any(|p| rule.selects(p)))
        || planned().any(|owner| {
            let rules = topology::rules(owner, &world.objects);
            rules.iter().any(|r| shared(r) && r.kind == RuleKind::AntiAffinity && r.selects(pod))
        })
}

struct Searcher<'a> {
    world: &'a World<'a>,
    pod: &'a Pod,
    requests: Amounts,
    terms: Vec<Vec<Expression>>,
    volumes: Vec<Vec<Expression>>,
    rules: Vec<Rule>,
    ignore_soft_taints: bool,
}

impl<'a> Searcher<'a> {
    fn new(world: &'a World<'a>, pod: &'a Pod) -> Self {
        let ignore_soft_taints = place::has_soft_taints(world.doc);
        let mut terms = model::node_terms(pod);
        if model::has_preferences(pod) || ignore_soft_taints {
            // Terms are given up before preferences, so that only the last is tried without them.
            terms.drain(..terms.len() - 1);
        }
        // A pod that is left over was tried past soft taints in the end, and counted so as well.
        let mut rules = topology::rules(pod, &world.objects);
        for rule in &mut rules {
            if let RuleKind::Spread { filter, .. } = &mut rule.kind
                && let Some(past) = filter.past_soft_taints(world.doc)
            {
                *filter = past;
            }
        }
        Self {
            world,
            pod,
            requests: model::requests(pod),
            terms,
            volumes: world.objects.volume_terms(pod),
            rules,
            ignore_soft_taints,
        }
    }

    fn tolerates(&self, place: &Place<'_>) -> bool {
        place.taints.iter().all(|t| {
            (self.ignore_soft_taints && t.effect == "PreferNoSchedule")
                || model::tolerates(model::tolerations(self.pod), t)
        })
    }

    fn ports_free(&self, place: &Place<'_>) -> bool {
        !place.pods().any(|other| model::ports_clash(self.pod, other))
    }

    /// All that the pod asks of a node: each term, and with it each way to reach its volumes.
    fn wishes(&self) -> Vec<(&[Expression], Vec<Expression>)> {
        let mut all = Vec::new();
        for term in &self.terms {
            for volumes in &self.volumes {
                all.push((term.as_slice(), term.iter().chain(volumes).cloned().collect()));
            }
        }
        all
    }

    fn existing(&self, place: &Place<'_>) -> bool {
        let Kind::Existing { room, .. } = &place.kind else { return false };
        let mut wanted = self.requests.clone();
        place.placed.iter().for_each(|p| model::add(&mut wanted, &model::requests(p)));
        let reachable = self.wishes().iter().any(|(term, wish)| {
            self.rules_allow(place, None, term)
                && wish.iter().all(|e| {
                    place
                        .label(self.world.doc, normal(&e.key), None)
                        .is_some_and(|l| l.narrowed(e).is_some())
                })
        });
        let negative = room.values().any(|v| *v < 0);
        reachable
            && !negative
            && model::short_of(&wanted, room).is_none()
            && self.tolerates(place)
            && self.ports_free(place)
            && place::volumes_within_limits(&self.world.objects, place, Some(self.pod))
    }

    fn claim(&self, place: &Place<'_>) -> bool {
        let Kind::New { types, pool, expressions } = &place.kind else { return false };
        let Some(pool) = place::pool(self.world.doc, pool) else { return false };
        if !self.tolerates(place) || !self.ports_free(place) {
            return false;
        }
        let claim = self
            .world
            .outcome
            .node_claims
            .iter()
            .find(|c| place.placed.first().is_some_and(|p| c.pods.contains(&model::name(p))));
        let wanted = |key: &str| {
            let of_claim = claim.into_iter().flat_map(|c| &c.requirements);
            of_claim.filter(|w| w.expression.key == key).filter_map(|w| w.min_values).max()
        };
        self.launches(place, pool, types, expressions, &wanted)
    }

    /// A node of its own from a pool.
    fn fresh(&self, pool: &karpenter::api::v1::NodePool, name: &str) -> bool {
        let doc = self.world.doc;
        let types: Vec<&TypeDoc> = doc.types_of(name).into_iter().collect();
        let place = Place {
            name: "fresh".to_owned(),
            taints: place::pool_taints(pool),
            bound: Vec::new(),
            placed: Vec::new(),
            kind: Kind::New {
                expressions: place::pool_expressions(pool),
                types: types.clone(),
                pool: name.to_owned(),
            },
        };
        let Kind::New { expressions, .. } = &place.kind else { return false };
        let left = self.limit_left(pool, name);
        let within = |t: &&TypeDoc| {
            let capacity = model::amounts(&t.capacity);
            left.iter().all(|(name, amount)| capacity.get(name).copied().unwrap_or(0) <= *amount)
        };
        let types: Vec<&TypeDoc> = types.into_iter().filter(within).collect();
        if left.get("nodes").is_some_and(|n| *n <= 0) || !self.tolerates(&place) {
            return false;
        }
        let requirements = &pool.spec.template.spec.requirements;
        let wanted = |key: &str| {
            requirements
                .iter()
                .filter(|r| r.key == key)
                .filter_map(|r| usize::try_from(r.min_values?).ok())
                .max()
        };
        self.launches(&place, pool, &types, expressions, &wanted)
    }

    /// What a pool may still use, in the worst case: each planned node as the pool's largest type.
    fn limit_left(&self, pool: &karpenter::api::v1::NodePool, name: &str) -> Amounts {
        let Some(limits) = &pool.spec.limits else { return Amounts::new() };
        let mut used = check::used_by_nodes(self.world.doc, name);
        let all = self.world.doc.types_of(name);
        for claim in self.world.outcome.node_claims.iter().filter(|c| c.node_pool == name) {
            debug_assert!(!claim.pods.is_empty());
            model::add(&mut used, &check::largest(&all));
            model::add(&mut used, &check::one_node());
        }
        limits
            .iter()
            .map(|(name, limit)| {
                let left = model::quantity(&limit.0) - used.get(name).copied().unwrap_or(0);
                (name.clone(), left)
            })
            .collect()
    }

    /// Whether the node could be launched with the pod on it as well.
    fn launches(
        &self,
        place: &Place<'_>,
        pool: &karpenter::api::v1::NodePool,
        types: &[&TypeDoc],
        expressions: &[Expression],
        min_values: &dyn Fn(&str) -> Option<usize>,
    ) -> bool {
        let mut pods = self.requests.clone();
        place.placed.iter().for_each(|p| model::add(&mut pods, &model::requests(p)));
        self.wishes().iter().any(|(term, wish)| {
            if place::undefined(self.world.doc, expressions, wish) {
                return false;
            }
            let launchable = |t: &&TypeDoc, zone: &str| {
                let holds = {
                    let mut wanted = pods.clone();
                    let daemons = place::daemons(self.world.doc, pool, t);
                    daemons.iter().for_each(|d| model::add(&mut wanted, &model::requests(d)));
                    model::short_of(&wanted, &t.allocatable()).is_none()
                        && !daemons.iter().any(|d| model::ports_clash(self.pod, d))
                };
                holds
                    && t.offerings
                        .iter()
                        .any(|o| o.available && o.zone == zone && self.offered(place, wish, t, o))
            };
            let zones: std::collections::BTreeSet<&str> =
                types.iter().flat_map(|t| &t.offerings).map(|o| o.zone.as_str()).collect();
            zones.into_iter().any(|zone| {
                let left: Vec<&TypeDoc> =
                    types.iter().copied().filter(|t| launchable(t, zone)).collect();
                // A rule about zones settles the zone, and with it the one value that is left.
                let settled: Vec<Expression> = match self.rules.iter().any(|r| r.key == model::ZONE)
                {
                    true => vec![Expression::is(model::ZONE, zone)],
                    false => Vec::new(),
                };
                let asked = || expressions.iter().chain(wish).chain(&settled);
                let varied = self.world.doc.options.min_values_policy == "BestEffort"
                    || asked().all(|e| {
                        min_values(&e.key)
                            .is_none_or(|n| check::values_of(&left, &e.key, asked()) >= n)
                    });
                !left.is_empty() && varied && self.rules_allow(place, Some(zone), term)
            })
        })
    }

    /// Whether an offering goes with the node's labels, the type's, and the pod's wishes.
    fn offered(
        &self,
        place: &Place<'_>,
        wish: &[Expression],
        t: &TypeDoc,
        o: &OfferingDoc,
    ) -> bool {
        let all: Vec<Expression> = wish
            .iter()
            .map(|e| Expression { key: normal(&e.key).to_owned(), ..e.clone() })
            .chain(o.expressions())
            .collect();
        let mut by_key: BTreeMap<&str, Vec<&Expression>> = BTreeMap::new();
        all.iter().for_each(|e| by_key.entry(&e.key).or_default().push(e));
        if let Kind::New { expressions, .. } = &place.kind {
            expressions.iter().for_each(|e| {
                by_key.entry(&e.key).or_default();
            });
        }
        by_key.into_iter().all(|(key, list)| {
            let mut label = place.label(self.world.doc, key, Some(t));
            // A custom label that nothing defines takes what is asked of it.
            for expression in list {
                label = label.and_then(|l| l.narrowed(expression));
            }
            label.is_some()
        })
    }

    /// Whether the rules between pods let the pod onto the node, in a zone for nodes to launch.
    fn rules_allow(&self, place: &Place<'_>, zone: Option<&str>, term: &[Expression]) -> bool {
        let here = |key: &str| match zone {
            Some(zone) if key == model::ZONE => Some(zone.to_owned()),
            _ => place.pinned(self.world.doc, key),
        };
        let own = self.rules.iter().all(|rule| match &rule.kind {
            RuleKind::AntiAffinity => match here(&rule.key) {
                Some(domain) => !self.near(rule, &domain),
                // A node without the label shares no domain with any other.
                None => place.label(self.world.doc, &rule.key, None) == Some(Label::Absent),
            },
            RuleKind::Affinity => here(&rule.key).is_some_and(|d| self.together(rule, &d)),
            RuleKind::Spread { .. } => here(&rule.key).is_some_and(|d| self.spread(rule, &d, term)),
        });
        own && !self.repelled(place, &here)
    }

    /// Some pod that the rule selects may be in the domain.
    fn near(&self, rule: &Rule, domain: &str) -> bool {
        self.world.places.iter().any(|other| {
            other.reach(self.world.doc, &rule.key).contains(domain)
                && other.pods().any(|p| rule.selects(p))
        })
    }

    fn together(&self, rule: &Rule, domain: &str) -> bool {
        let doc = self.world.doc;
        let counted = |d: &str| {
            self.world.places.iter().any(|other| {
                other.pinned(doc, &rule.key).as_deref() == Some(d)
                    && other.pods().any(|p| rule.selects(p))
            })
        };
        if counted(domain) {
            return true;
        }
        let known = rule.key == HOSTNAME
            || topology::universe(doc, &self.world.places, &rule.key, &place::Filter::default())
                .contains(domain);
        let elsewhere = self.world.places.iter().any(|other| {
            other.pinned(doc, &rule.key).is_some_and(|d| {
                self.terms
                    .iter()
                    .any(|t| t.iter().filter(|e| e.key == rule.key).all(|e| e.met_by(Some(&d))))
            }) && other.pods().any(|p| rule.selects(p))
        });
        known && rule.selects(self.pod) && !elsewhere
    }

    fn spread(&self, rule: &Rule, domain: &str, term: &[Expression]) -> bool {
        let RuleKind::Spread { skew, min_domains, filter } = &rule.kind else { return true };
        let doc = self.world.doc;
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        for other in self.world.places.iter().filter(|p| p.counted_for(doc, filter)) {
            let here = i64::try_from(other.pods().filter(|p| rule.selects(p)).count()).unwrap_or(0);
            if let Some(domain) = other.pinned(doc, &rule.key) {
                *counts.entry(domain).or_default() += here;
            }
        }
        if rule.key != HOSTNAME
            && !topology::universe(doc, &self.world.places, &rule.key, filter).contains(domain)
        {
            return false;
        }
        let least =
            topology::least(doc, &self.world.places, &counts, rule, *min_domains, filter, term);
        let own = i64::from(rule.selects(self.pod));
        counts.get(domain).copied().unwrap_or(0) + own - least <= *skew
    }

    /// Some pod that is to be apart from this one may be in a domain of the node.
    fn repelled(&self, place: &Place<'_>, here: &dyn Fn(&str) -> Option<String>) -> bool {
        self.world.places.iter().any(|other| {
            other.pods().any(|owner| {
                topology::rules(owner, &self.world.objects).into_iter().any(|rule| {
                    let shares = match here(&rule.key) {
                        Some(domain) => other.reach(self.world.doc, &rule.key).contains(&domain),
                        None => other.name == place.name,
                    };
                    rule.kind == RuleKind::AntiAffinity && rule.selects(self.pod) && shares
                })
            })
        })
    }
}
