//! Nodes with the pods that a result puts on them, those that exist and those to come.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};
use karpenter::api::v1::NodePool;

use super::label::Label;
use super::model::{self, Amounts, Document, Expression, HOSTNAME, Objects, OfferingDoc, TypeDoc};
use super::outcome::Claim;

/// One node.
pub struct Place<'a> {
    pub name: String,
    pub taints: Vec<Taint>,
    /// Pods that were there before.
    pub bound: Vec<&'a Pod>,
    /// Pods that the result adds.
    pub placed: Vec<&'a Pod>,
    pub kind: Kind<'a>,
}

pub enum Kind<'a> {
    Existing {
        labels: BTreeMap<String, String>,
        room: Amounts,
    },
    /// A node to launch: what its NodeClaim asks for, and the types that it may become.
    New {
        expressions: Vec<Expression>,
        types: Vec<&'a TypeDoc>,
        pool: String,
    },
}

impl<'a> Place<'a> {
    pub fn pods(&self) -> impl Iterator<Item = &'a Pod> {
        self.bound.iter().chain(&self.placed).copied()
    }

    /// What a label of the node can be; for a node to launch, as one of its types.
    pub fn label(&self, doc: &Document, key: &str, of_type: Option<&TypeDoc>) -> Option<Label> {
        match &self.kind {
            Kind::Existing { labels, .. } => Some(match labels.get(key) {
                Some(value) => Label::OneOf([value.clone()].into()),
                None => Label::Absent,
            }),
            Kind::New { expressions, .. } => {
                if key == HOSTNAME {
                    return Some(Label::OneOf([self.name.clone()].into()));
                }
                let mut all: Vec<Expression> =
                    expressions.iter().filter(|e| e.key == key).cloned().collect();
                all.extend(of_type.iter().flat_map(|t| t.of_key(key)).cloned());
                match all.is_empty() {
                    true if doc.well_known(key) => Some(Label::open()),
                    true => Some(Label::Absent),
                    false => Label::of(&all),
                }
            }
        }
    }

    /// Every value that the node's label can turn out to have.
    pub fn domains(&self, doc: &Document, key: &str) -> BTreeSet<String> {
        match &self.kind {
            Kind::Existing { .. } => self.label(doc, key, None).map(|l| l.values()),
            Kind::New { .. } if key == HOSTNAME => Some([self.name.clone()].into()),
            Kind::New { expressions, types, .. } => {
                let own: Vec<Expression> =
                    expressions.iter().filter(|e| e.key == key).cloned().collect();
                match Label::of(&own) {
                    Some(Label::OneOf(values)) if !own.is_empty() => Some(values),
                    _ => Some(
                        types
                            .iter()
                            .filter_map(|t| self.label(doc, key, Some(t)))
                            .flat_map(|l| l.values())
                            .collect(),
                    ),
                }
            }
        }
        .unwrap_or_default()
    }

    /// The one value that the node's label has, if that is certain.
    pub fn domain(&self, doc: &Document, key: &str) -> Option<String> {
        let mut all = self.domains(doc, key).into_iter();
        match (all.next(), all.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        }
    }

    /// Values that the node's label may get as far as its NodeClaim alone says: while a round goes on,
    /// nobody knows yet which of its types it will be.
    pub fn reach(&self, doc: &Document, key: &str) -> BTreeSet<String> {
        let Kind::New { expressions, .. } = &self.kind else { return self.domains(doc, key) };
        if key == HOSTNAME {
            return [self.name.clone()].into();
        }
        let own: Vec<Expression> = expressions.iter().filter(|e| e.key == key).cloned().collect();
        let anything = || {
            let all = doc.instance_types.iter().flat_map(|t| t.of_key(key));
            all.filter(|e| e.operator == "In").flat_map(|e| e.values.clone())
        };
        match Label::of(&own) {
            Some(Label::OneOf(values)) => values,
            Some(label @ Label::Open { .. }) => {
                anything().filter(|v| label.narrowed(&Expression::is(key, v)).is_some()).collect()
            }
            _ => BTreeSet::new(),
        }
    }

    /// The one value that the node's label gets, if its NodeClaim says so.
    pub fn pinned(&self, doc: &Document, key: &str) -> Option<String> {
        let mut all = self.reach(doc, key).into_iter();
        match (all.next(), all.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        }
    }

    /// Whether pods that a constraint counts are counted here.
    pub fn counted_for(&self, doc: &Document, filter: &Filter) -> bool {
        let reachable = filter.terms.is_empty()
            || filter.terms.iter().any(|term| {
                term.iter().all(|e| match self.label(doc, &e.key, None) {
                    Some(Label::Absent) => e.negative(),
                    Some(label) => label.narrowed(e).is_some(),
                    None => false,
                })
            });
        let open = filter
            .tolerations
            .as_ref()
            .is_none_or(|tolerations| self.taints.iter().all(|t| model::tolerates(tolerations, t)));
        reachable && open
    }
}

/// Which nodes a spread constraint looks at; nothing set means all.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Filter {
    pub terms: Vec<Vec<Expression>>,
    pub tolerations: Option<Vec<Toleration>>,
}

impl Filter {
    /// The same for pods that have come to tolerate soft taints, if that makes a difference.
    pub fn past_soft_taints(&self, doc: &Document) -> Option<Self> {
        let mut tolerations = self.tolerations.clone()?;
        if !has_soft_taints(doc) {
            return None;
        }
        tolerations.push(Toleration {
            operator: Some("Exists".to_owned()),
            effect: Some("PreferNoSchedule".to_owned()),
            ..Toleration::default()
        });
        Some(Self { terms: self.terms.clone(), tolerations: Some(tolerations) })
    }
}

/// Whether some pool has taints that pods come to tolerate when nothing else is left.
pub fn has_soft_taints(doc: &Document) -> bool {
    doc.node_pools.iter().flat_map(pool_taints).any(|t| t.effect == "PreferNoSchedule")
}

/// The expressions of a pool's new nodes.
pub fn pool_expressions(pool: &NodePool) -> Vec<Expression> {
    let template = &pool.spec.template;
    let mut all: Vec<Expression> = template
        .spec
        .requirements
        .iter()
        .map(|r| Expression {
            key: r.key.clone(),
            operator: r.operator.as_str().to_owned(),
            values: r.values.clone(),
        })
        .collect();
    all.extend(template.metadata.labels.iter().flatten().map(|(k, v)| Expression::is(k, v)));
    all.push(Expression::is(model::NODEPOOL, pool.metadata.name.as_deref().unwrap_or_default()));
    all
}

pub fn pool_taints(pool: &NodePool) -> Vec<Taint> {
    pool.spec.template.spec.taints.clone().unwrap_or_default()
}

/// DaemonSet pods that will run on a pool's node of one type.
pub fn daemons<'a>(doc: &'a Document, pool: &NodePool, of_type: &TypeDoc) -> Vec<&'a Pod> {
    let node = Place {
        name: String::new(),
        taints: pool_taints(pool),
        bound: Vec::new(),
        placed: Vec::new(),
        kind: Kind::New {
            expressions: pool_expressions(pool),
            types: Vec::new(),
            pool: String::new(),
        },
    };
    doc.daemon_set_pods
        .iter()
        .filter(|daemon| {
            let open = node.taints.iter().all(|t| {
                t.effect == "PreferNoSchedule" || model::tolerates(model::tolerations(daemon), t)
            });
            open && model::node_terms(daemon).iter().any(|term| {
                term.iter().all(|e| {
                    let own_label = matches!(
                        e.key.as_str(),
                        "karpenter.sh/registered" | "karpenter.sh/initialized"
                    );
                    own_label && e.met_by(Some("true"))
                        || node
                            .label(doc, &e.key, Some(of_type))
                            .is_some_and(|l| l.narrowed(e).is_some())
                })
            })
        })
        .collect()
}

/// DaemonSet pods that will run on a node to launch: as whatever type, or as some type.
pub fn expected<'a>(doc: &'a Document, place: &Place<'_>, certainly: bool) -> Vec<&'a Pod> {
    let Kind::New { types, pool: name, .. } = &place.kind else { return Vec::new() };
    let Some(pool) = pool(doc, name) else { return Vec::new() };
    let by_type: Vec<Vec<&Pod>> = types.iter().map(|t| daemons(doc, pool, t)).collect();
    let runs = |daemon: &&Pod| {
        let on = |list: &Vec<&Pod>| list.iter().any(|d| std::ptr::eq(*d, *daemon));
        if certainly { by_type.iter().all(on) } else { by_type.iter().any(on) }
    };
    doc.daemon_set_pods.iter().filter(runs).collect()
}

/// Whether something is asked of a label that a pool's nodes may not have: labels of instance types
/// reach a node only where they are well known or the pool names them.
pub fn undefined(doc: &Document, pool: &[Expression], asked: &[Expression]) -> bool {
    asked.iter().any(|e| {
        let key = super::check::normal(&e.key);
        let known = pool.iter().any(|x| x.key == key) || doc.well_known(key) || key == HOSTNAME;
        !known && !e.negative()
    })
}

/// Values that a label has on a node launched from a pool, as a type, from an offering, for a pod that
/// asks for `term`; none when these do not go together.
pub fn launched_as(
    doc: &Document,
    pool: &NodePool,
    of_type: &TypeDoc,
    offering: &OfferingDoc,
    term: &[Expression],
    key: &str,
) -> BTreeSet<String> {
    let mould = Place {
        name: String::new(),
        taints: Vec::new(),
        bound: Vec::new(),
        placed: Vec::new(),
        kind: Kind::New {
            expressions: pool_expressions(pool),
            types: Vec::new(),
            pool: String::new(),
        },
    };
    let normal =
        |e: &Expression| Expression { key: super::check::normal(&e.key).to_owned(), ..e.clone() };
    let asked: Vec<Expression> = term.iter().map(normal).chain(offering.expressions()).collect();
    let pool_keys = pool_expressions(pool);
    if undefined(doc, &pool_keys, term) {
        return BTreeSet::new();
    }
    let keys: BTreeSet<&str> = asked
        .iter()
        .chain(&pool_keys)
        .map(|e| e.key.as_str())
        .chain([key])
        .filter(|k| *k != HOSTNAME)
        .collect();
    let mut values = BTreeSet::new();
    for of_key in keys {
        let mut label = mould.label(doc, of_key, Some(of_type));
        for expression in asked.iter().filter(|e| e.key == of_key) {
            label = label.and_then(|l| l.narrowed(expression));
        }
        match label {
            None => return BTreeSet::new(),
            Some(label) if of_key == key => values = label.values(),
            Some(_) => {}
        }
    }
    values
}

/// The node that a NodeClaim of the result will become.
pub fn claim_place<'a>(
    doc: &'a Document,
    claim: &Claim,
    index: usize,
    pods: &BTreeMap<String, &'a Pod>,
) -> Place<'a> {
    let pool = pool(doc, &claim.node_pool);
    Place {
        name: format!("new-{index}"),
        taints: pool.map(pool_taints).unwrap_or_default(),
        bound: Vec::new(),
        placed: claim.pods.iter().filter_map(|n| pods.get(n).copied()).collect(),
        kind: Kind::New {
            expressions: claim.requirements.iter().map(|w| w.expression.clone()).collect(),
            types: claim
                .instance_types
                .iter()
                .filter_map(|name| doc.instance_types.iter().find(|t| t.name == *name))
                .collect(),
            pool: claim.node_pool.clone(),
        },
    }
}

pub fn pool<'a>(doc: &'a Document, name: &str) -> Option<&'a NodePool> {
    doc.node_pools.iter().find(|p| p.metadata.name.as_deref() == Some(name))
}

/// The nodes that exist, with room for pods after daemons that are still to come.
pub fn existing_places(doc: &Document) -> Vec<Place<'_>> {
    doc.nodes
        .iter()
        .map(|entry| {
            let meta = &entry.node.metadata;
            let name = meta.name.clone().unwrap_or_default();
            let mut labels = meta.labels.clone().unwrap_or_default();
            labels.entry(HOSTNAME.to_owned()).or_insert_with(|| name.clone());
            let spec = entry.node.spec.clone().unwrap_or_default();
            let listed = entry.node.status.as_ref().and_then(|s| s.allocatable.as_ref());
            let mut room: Amounts = listed
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.clone(), model::quantity(&v.0)))
                .collect();
            for pod in &entry.pods {
                take(&mut room, &model::requests(pod));
            }
            let mut place = Place {
                name,
                taints: spec.taints.unwrap_or_default(),
                bound: entry.pods.iter().collect(),
                placed: Vec::new(),
                kind: Kind::Existing { labels, room: Amounts::new() },
            };
            take(&mut room, &missing_daemons(doc, &place));
            if let Kind::Existing { room: kept, .. } = &mut place.kind {
                *kept = room;
            }
            place
        })
        .collect()
}

fn take(room: &mut Amounts, used: &Amounts) {
    for (name, amount) in room.iter_mut() {
        *amount -= used.get(name).copied().unwrap_or(0);
    }
}

fn missing_daemons(doc: &Document, place: &Place<'_>) -> Amounts {
    let mut wanted = Amounts::new();
    for daemon in &doc.daemon_set_pods {
        let open = place.taints.iter().all(|t| {
            t.effect == "PreferNoSchedule" || model::tolerates(model::tolerations(daemon), t)
        });
        let first = &model::node_terms(daemon)[0];
        let here = first
            .iter()
            .all(|e| place.label(doc, &e.key, None).is_some_and(|l| l.narrowed(e).is_some()));
        if open && here {
            model::add(&mut wanted, &model::requests(daemon));
        }
    }
    for pod in &place.bound {
        let owners = pod.metadata.owner_references.iter().flatten();
        if owners.into_iter().any(|o| o.kind == "DaemonSet") {
            for (name, amount) in model::requests(pod) {
                if let Some(left) = wanted.get_mut(&name) {
                    *left -= amount;
                }
            }
        }
    }
    wanted.into_iter().map(|(name, amount)| (name, amount.max(0))).collect()
}

/// Whether the volumes of these pods together stay within the node's limits.
pub fn volumes_within_limits(objects: &Objects, place: &Place<'_>, more: Option<&Pod>) -> bool {
    let Some(node) = objects.csi_nodes.get(&place.name) else { return true };
    let attached: BTreeSet<(String, String)> =
        place.pods().chain(more).flat_map(|p| objects.attached(p)).collect();
    node.spec.drivers.iter().all(|driver| {
        let limit = driver.allocatable.as_ref().and_then(|a| a.count);
        let used = attached.iter().filter(|(name, _)| *name == driver.name).count();
        limit.is_none_or(|limit| used <= usize::try_from(limit).unwrap_or(0))
    })
}
