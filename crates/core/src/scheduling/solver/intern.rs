//! Label keys, values, requirements and sets of requirements as small numbers.
//!
//! Equal things get equal numbers, and every operation on two of them is computed once: the
//! scheduling loop compares numbers and looks answers up. The order of numbers says nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::api::labels;
use crate::scheduling::requirements::{Requirement, Requirements};
use crate::scheduling::solver::ids::{Interned, KeyId, List, ReqId, SetId, ValueId};

/// The set without requirements.
pub(super) const EMPTY: SetId = SetId::FIRST;

struct Key {
    name: Arc<str>,
    well_known: bool,
    values: Interned<ValueId, Arc<str>>,
    numbers: List<ValueId, Option<i64>>,
}

/// A requirement over interned values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Req {
    pub(super) key: KeyId,
    pub(super) complement: bool,
    /// Sorted by number.
    pub(super) values: SmallVec<[ValueId; 4]>,
    gte: Option<i64>,
    lte: Option<i64>,
    pub(super) min_values: Option<i64>,
}

impl Req {
    /// NotIn or DoesNotExist: met by a label that is not there.
    fn negative(&self) -> bool {
        self.complement != self.values.is_empty()
    }

    fn names(&self, value: ValueId) -> bool {
        self.values.binary_search(&value).is_ok()
    }
}

fn minimum(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    match (a, b) {
        (Some(x), Some(y)) => Some(x.min(y)),
        (x, y) => x.or(y),
    }
}

/// All that is known about labels in one scheduling round.
pub(super) struct Interner {
    keys: List<KeyId, Key>,
    key_index: FxHashMap<Arc<str>, KeyId>,
    reqs: Interned<ReqId, Req>,
    sets: Interned<SetId, Box<[(KeyId, ReqId)]>>,
    /// Sets by the address of the requirements they come from, which are kept alive with them.
    addresses: FxHashMap<usize, (Requirements, SetId, ReqId)>,
    intersections: FxHashMap<(ReqId, ReqId), ReqId>,
    merged: FxHashMap<(SetId, SetId), SetId>,
    compatible: FxHashMap<(SetId, SetId, bool), bool>,
    /// The key of host names.
    pub(super) hostname: KeyId,
    more_well_known: BTreeSet<String>,
}

impl Interner {
    /// An interner for which these keys are well known besides the usual ones.
    pub(super) fn new(more_well_known: &BTreeSet<String>) -> Self {
        let mut interner = Self {
            keys: List::default(),
            key_index: FxHashMap::default(),
            reqs: Interned::default(),
            sets: Interned::default(),
            addresses: FxHashMap::default(),
            intersections: FxHashMap::default(),
            merged: FxHashMap::default(),
            compatible: FxHashMap::default(),
            hostname: KeyId::FIRST,
            more_well_known: more_well_known.clone(),
        };
        interner.hostname = interner.key(labels::HOSTNAME);
        interner.sets.insert(Box::default());
        interner
    }

    /// The number of a key.
    pub(super) fn key(&mut self, name: &str) -> KeyId {
        if let Some(id) = self.key_index.get(name) {
            return *id;
        }
        let name: Arc<str> = Arc::from(name);
        let well_known = labels::is_well_known(&name) || self.more_well_known.contains(&*name);
        let own = Arc::clone(&name);
        let id = self.keys.push(Key {
            name,
            well_known,
            values: Interned::default(),
            numbers: List::default(),
        });
        self.key_index.insert(own, id);
        id
    }

    /// The number of a key, if something named it before.
    pub(super) fn find_key(&self, name: &str) -> Option<KeyId> {
        self.key_index.get(name).copied()
    }

    /// The text of a key.
    pub(super) fn key_name(&self, key: KeyId) -> &Arc<str> {
        &self.keys[key].name
    }

    /// True for keys that a new node may lack.
    pub(super) fn well_known(&self, key: KeyId) -> bool {
        self.keys[key].well_known
    }

    /// The number of a value of a key.
    pub(super) fn value(&mut self, key: KeyId, text: &str) -> ValueId {
        let key = &mut self.keys[key];
        if let Some(id) = key.values.find(text) {
            return id;
        }
        key.numbers.push(text.parse().ok());
        key.values.insert(Arc::from(text))
    }

    /// How many values of a key were seen.
    pub(super) fn value_count(&self, key: KeyId) -> usize {
        self.keys[key].values.len()
    }

    /// The text of a value.
    pub(super) fn value_name(&self, key: KeyId, value: ValueId) -> &Arc<str> {
        &self.keys[key].values[value]
    }

    /// How many values of the key come before a value by name.
    pub(super) fn rank_of_value(&self, key: KeyId, value: ValueId) -> usize {
        let text = self.value_name(key, value);
        self.keys[key].values.iter().filter(|other| *other < text).count()
    }

    /// The requirement behind a number.
    pub(super) fn req(&self, id: ReqId) -> &Req {
        &self.reqs[id]
    }

    fn add_req(&mut self, mut req: Req) -> ReqId {
        req.values.sort_unstable();
        req.values.dedup();
        self.reqs.insert(req)
    }

    /// The number of a requirement.
    pub(super) fn intern(&mut self, requirement: &Requirement) -> ReqId {
        let key = self.key(requirement.key());
        let values = requirement.values().map(|v| self.value(key, v)).collect();
        let (gte, lte) = requirement.bounds();
        let min_values = requirement.min_values();
        self.add_req(Req {
            key,
            complement: requirement.is_complement(),
            values,
            gte,
            lte,
            min_values,
        })
    }

    /// `key In values`.
    pub(super) fn one_of(&mut self, key: KeyId, values: &[ValueId]) -> ReqId {
        self.add_req(Req {
            key,
            complement: false,
            values: SmallVec::from_slice(values),
            gte: None,
            lte: None,
            min_values: None,
        })
    }

    /// The same requirement with another minValues.
    pub(super) fn with_min_values(&mut self, id: ReqId, min_values: i64) -> ReqId {
        let req = Req { min_values: Some(min_values), ..self.req(id).clone() };
        self.add_req(req)
    }

    /// The number of a set of requirements, and of its requirement on the host name or [`ReqId::NONE`].
    pub(super) fn intern_all(&mut self, requirements: &Requirements) -> (SetId, ReqId) {
        if requirements.is_empty() {
            return (EMPTY, ReqId::NONE);
        }
        let address = requirements.address();
        if let Some((_, set, host)) = self.addresses.get(&address) {
            return (*set, *host);
        }
        let (set, host) = self.intern_once(requirements);
        self.addresses.insert(address, (requirements.clone(), set, host));
        (set, host)
    }

    /// As [`Interner::intern_all`], for requirements that will not be asked for again.
    pub(super) fn intern_once(&mut self, requirements: &Requirements) -> (SetId, ReqId) {
        let mut host = ReqId::NONE;
        let mut list: SmallVec<[(KeyId, ReqId); 8]> = SmallVec::new();
        for requirement in requirements.iter() {
            let id = self.intern(requirement);
            let key = self.req(id).key;
            if key == self.hostname {
                host = id;
            } else {
                list.push((key, id));
            }
        }
        (self.add_set(list), host)
    }

    fn add_set(&mut self, mut list: SmallVec<[(KeyId, ReqId); 8]>) -> SetId {
        list.sort_unstable();
        match self.sets.find(&list[..]) {
            Some(id) => id,
            None => self.sets.insert(list.into_vec().into_boxed_slice()),
        }
    }

    /// A set from requirements of distinct keys.
    pub(super) fn set_of(&mut self, reqs: impl IntoIterator<Item = ReqId>) -> SetId {
        let list = reqs.into_iter().map(|id| (self.reqs[id].key, id)).collect();
        self.add_set(list)
    }

    /// Keys and requirements of a set.
    pub(super) fn set(&self, id: SetId) -> &[(KeyId, ReqId)] {
        &self.sets[id]
    }

    /// The requirement of a set on a key.
    pub(super) fn get(&self, set: SetId, key: KeyId) -> Option<ReqId> {
        self.set(set).iter().find(|(k, _)| *k == key).map(|(_, r)| *r)
    }

    /// True when the requirement admits the value.
    pub(super) fn has(&self, id: ReqId, value: ValueId) -> bool {
        let req = self.req(id);
        req.names(value) != req.complement && self.within(req.key, value, req.gte, req.lte)
    }

    /// True when there is no requirement, or it admits the value.
    pub(super) fn admits(&self, id: Option<ReqId>, value: ValueId) -> bool {
        id.is_none_or(|id| self.has(id, value))
    }

    /// Whether a node with this requirement on a key will not have the label; `new` for nodes that
    /// get the label from their type or offering.
    pub(super) fn lacks(&self, req: Option<ReqId>, new: bool) -> bool {
        match req.map(|r| self.req(r)) {
            Some(req) => !req.complement && req.values.is_empty(),
            None => !new,
        }
    }

    fn within(&self, key: KeyId, value: ValueId, gte: Option<i64>, lte: Option<i64>) -> bool {
        if gte.is_none() && lte.is_none() {
            return true;
        }
        self.keys[key].numbers[value]
            .is_some_and(|n| gte.is_none_or(|g| n >= g) && lte.is_none_or(|l| n <= l))
    }

    /// Whether some value meets both.
    pub(super) fn meets(&self, a: ReqId, b: ReqId) -> bool {
        if a == b && !self.req(a).values.is_empty() && self.req(a).gte.is_none() {
            return true;
        }
        let (a, b) = (self.req(a), self.req(b));
        let (gte, lte) = (a.gte.max(b.gte), minimum(a.lte, b.lte));
        if gte.zip(lte).is_some_and(|(g, l)| g > l) {
            return false;
        }
        let any = |from: &Req, against: &Req, named: bool| {
            from.values
                .iter()
                .any(|v| against.names(*v) == named && self.within(from.key, *v, gte, lte))
        };
        match (a.complement, b.complement) {
            (true, true) => true,
            (true, false) => any(b, a, false),
            (false, true) => any(a, b, false),
            (false, false) => any(a, b, true),
        }
    }

    /// Whether a label may be what both ask: two negative requirements always go together.
    pub(super) fn agree(&self, a: ReqId, b: ReqId) -> bool {
        self.meets(a, b) || (self.req(a).negative() && self.req(b).negative())
    }

    fn intersect(&mut self, a: ReqId, b: ReqId) -> ReqId {
        if a == b {
            return a;
        }
        let pair = (a.min(b), a.max(b));
        if let Some(id) = self.intersections.get(&pair) {
            return *id;
        }
        let (x, y) = (self.req(a), self.req(b));
        let (gte, lte) = (x.gte.max(y.gte), minimum(x.lte, y.lte));
        let mut req = Req {
            key: x.key,
            complement: x.complement && y.complement,
            values: SmallVec::new(),
            gte,
            lte,
            min_values: x.min_values.max(y.min_values),
        };
        if gte.zip(lte).is_some_and(|(g, l)| g > l) {
            req.complement = false;
        } else {
            let keep = |from: &Req, against: Option<(&Req, bool)>| -> SmallVec<[ValueId; 4]> {
                from.values
                    .iter()
                    .copied()
                    .filter(|v| against.is_none_or(|(other, named)| other.names(*v) == named))
                    .filter(|v| self.within(from.key, *v, gte, lte))
                    .collect()
            };
            req.values = match (x.complement, y.complement) {
                (true, true) => {
                    let mut all = keep(x, None);
                    all.extend(keep(y, None));
                    all
                }
                (true, false) => keep(y, Some((x, false))),
                (false, true) => keep(x, Some((y, false))),
                (false, false) => keep(x, Some((y, true))),
            };
        }
        if !req.complement {
            (req.gte, req.lte) = (None, None);
        }
        let id = self.add_req(req);
        self.intersections.insert(pair, id);
        id
    }

    /// Both sets together, key by key.
    pub(super) fn merge(&mut self, a: SetId, b: SetId) -> SetId {
        if a == b || b == EMPTY {
            return a;
        }
        if a == EMPTY {
            return b;
        }
        if let Some(id) = self.merged.get(&(a, b)) {
            return *id;
        }
        let mut list: SmallVec<[(KeyId, ReqId); 8]> = SmallVec::from_slice(self.set(a));
        let added: SmallVec<[(KeyId, ReqId); 8]> = SmallVec::from_slice(self.set(b));
        for (key, req) in added {
            match list.iter().position(|(k, _)| *k == key) {
                Some(at) => list[at].1 = self.intersect(list[at].1, req),
                None => list.push((key, req)),
            }
        }
        let id = self.add_set(list);
        self.merged.insert((a, b), id);
        id
    }

    /// The set narrowed by one more requirement.
    pub(super) fn narrow(&mut self, set: SetId, req: ReqId) -> SetId {
        let one = self.set_of([req]);
        self.merge(set, one)
    }

    /// The set with its requirement on that key replaced.
    pub(super) fn replace(&mut self, set: SetId, req: ReqId) -> SetId {
        let key = self.req(req).key;
        let mut list: SmallVec<[(KeyId, ReqId); 8]> =
            self.set(set).iter().copied().filter(|(k, _)| *k != key).collect();
        list.push((key, req));
        self.add_set(list)
    }

    /// Checks that a node with requirements `a` can meet `b`; a new node may lack well-known labels.
    pub(super) fn compatible(&mut self, a: SetId, b: SetId, new_node: bool) -> bool {
        if b == EMPTY {
            return true;
        }
        if let Some(answer) = self.compatible.get(&(a, b, new_node)) {
            return *answer;
        }
        let answer = self.set(b).iter().all(|(key, incoming)| match self.get(a, *key) {
            Some(existing) => self.agree(existing, *incoming),
            None => (new_node && self.well_known(*key)) || self.req(*incoming).negative(),
        });
        self.compatible.insert((a, b, new_node), answer);
        answer
    }

    /// Requirements as the outside knows them.
    pub(super) fn requirement(&self, id: ReqId) -> Requirement {
        let req = self.req(id);
        Requirement::from_parts(
            Arc::clone(self.key_name(req.key)),
            req.complement,
            req.values.iter().map(|v| Arc::clone(self.value_name(req.key, *v))),
            (req.gte, req.lte),
            req.min_values,
        )
    }

    /// A set of requirements as the outside knows it.
    pub(super) fn requirements(&self, set: SetId) -> Requirements {
        Requirements::from_vec(self.set(set).iter().map(|(_, r)| self.requirement(*r)).collect())
    }
}
