//! What a label must be.

use std::fmt;
use std::sync::{Arc, LazyLock};

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::api::labels;
use crate::api::v1::{NodeSelectorRequirementWithMinValues, Operator};

/// Named values, sorted. Nearly always a single one, which `SmallVec` keeps without an allocation.
type Values = SmallVec<[Arc<str>; 1]>;

/// The values that a label may have: a set, or all but a set, within integer bounds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    pub(super) key: Arc<str>,
    pub(super) complement: bool,
    values: Values,
    /// Bounds and minValues. They are rare, and a box keeps the many requirements without them
    /// small.
    extra: Option<Box<Extra>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Extra {
    gte: Option<i64>,
    lte: Option<i64>,
    min_values: Option<i64>,
}

/// The key as shared text. Well-known keys are kept once for the process: each instance type of
/// each pool has a requirement for most of them.
fn shared_key(key: &str) -> Arc<str> {
    static KNOWN: LazyLock<FxHashMap<&'static str, Arc<str>>> = LazyLock::new(|| {
        labels::WELL_KNOWN_CORE
            .iter()
            .chain(labels::WELL_KNOWN_AWS)
            .chain(&[labels::HOSTNAME, labels::REGISTERED, labels::INITIALIZED])
            .map(|key| (*key, Arc::from(*key)))
            .collect()
    });
    KNOWN.get(key).map_or_else(|| Arc::from(key), Arc::clone)
}

impl Requirement {
    /// A requirement as written in a manifest; deprecated label keys such as
    /// `beta.kubernetes.io/arch` become their successors.
    #[must_use]
    pub fn new<V: AsRef<str>>(
        key: &str,
        operator: Operator,
        values: impl IntoIterator<Item = V>,
    ) -> Self {
        let mut complement = !matches!(operator, Operator::In | Operator::DoesNotExist);
        let mut named = Values::new();
        let (mut gte, mut lte) = (None, None);
        let mut values = values.into_iter();
        // Validation refuses what is no integer before it comes here; 0 is what Karpenter falls
        // back to.
        let mut bound = || values.next().and_then(|v| v.as_ref().parse::<i64>().ok()).unwrap_or(0);
        match operator {
            Operator::In | Operator::NotIn => {
                named = values.map(|v| Arc::from(v.as_ref())).collect();
            }
            Operator::Exists | Operator::DoesNotExist => {}
            // `Gt` and `Lt` become inclusive bounds. Beyond the last integer nothing is left, which
            // is an empty finite set.
            Operator::Gt => match bound().checked_add(1) {
                Some(n) => gte = Some(n),
                None => complement = false,
            },
            Operator::Lt => match bound().checked_sub(1) {
                Some(n) => lte = Some(n),
                None => complement = false,
            },
            Operator::Gte => gte = Some(bound()),
            Operator::Lte => lte = Some(bound()),
        }
        Self::from_parts(shared_key(labels::normalize(key)), complement, named, (gte, lte), None)
    }

    /// A requirement from its parts; values may be in any order.
    pub(in crate::scheduling) fn from_parts(
        key: Arc<str>,
        complement: bool,
        values: impl IntoIterator<Item = Arc<str>>,
        (gte, lte): (Option<i64>, Option<i64>),
        min_values: Option<i64>,
    ) -> Self {
        let mut values: Values = values.into_iter().collect();
        values.sort_unstable();
        values.dedup();
        values.shrink_to_fit();
        let extra = Extra { gte, lte, min_values };
        let extra = (extra != Extra::default()).then(|| Box::new(extra));
        Self { key, complement, values, extra }
    }

    fn extra(&self) -> Extra {
        self.extra.as_deref().copied().unwrap_or_default()
    }

    /// `key In [value]`.
    #[must_use]
    pub fn is(key: &str, value: &str) -> Self {
        Self::new(key, Operator::In, [value])
    }

    /// The same requirement that also asks for a variety of values.
    #[must_use]
    pub fn with_min_values(mut self, min_values: Option<i64>) -> Self {
        let extra = Extra { min_values, ..self.extra() };
        self.extra = (extra != Extra::default()).then(|| Box::new(extra));
        self
    }

    /// The label's key.
    #[must_use]
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// How many different values must stay possible.
    #[must_use]
    pub fn min_values(&self) -> Option<i64> {
        self.extra().min_values
    }

    /// Named values: those allowed, or those excluded when [`Requirement::is_complement`].
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(|v| &**v)
    }

    /// Number of named values.
    #[must_use]
    pub fn named(&self) -> usize {
        self.values.len()
    }

    /// True when the named values are the ones excluded.
    #[must_use]
    pub fn is_complement(&self) -> bool {
        self.complement
    }

    /// Inclusive bounds.
    #[must_use]
    pub fn bounds(&self) -> (Option<i64>, Option<i64>) {
        let extra = self.extra();
        (extra.gte, extra.lte)
    }

    fn names(&self, value: &str) -> bool {
        self.values.binary_search_by(|v| (**v).cmp(value)).is_ok()
    }

    /// Bounds of both together, and whether they leave anything.
    fn common_bounds(&self, other: &Self) -> (Option<i64>, Option<i64>, bool) {
        let (a, b) = (self.extra(), other.extra());
        let gte = a.gte.max(b.gte);
        let lte = match (a.lte, b.lte) {
            (Some(x), Some(y)) => Some(x.min(y)),
            (x, y) => x.or(y),
        };
        (gte, lte, gte.zip(lte).is_none_or(|(g, l)| g <= l))
    }

    /// The operator that describes the set.
    #[must_use]
    pub fn operator(&self) -> Operator {
        match (self.complement, self.values.is_empty()) {
            (true, false) => Operator::NotIn,
            (true, true) => Operator::Exists,
            (false, false) => Operator::In,
            (false, true) => Operator::DoesNotExist,
        }
    }

    /// True when the label may have this value.
    #[must_use]
    pub fn has(&self, value: &str) -> bool {
        let (gte, lte) = self.bounds();
        self.names(value) != self.complement && within(value, gte, lte)
    }

    /// The one value left, if exactly one is.
    #[must_use]
    pub fn single(&self) -> Option<&str> {
        match &self.values[..] {
            [value] if !self.complement => Some(value),
            _ => None,
        }
    }

    /// A value that meets the requirement: the first named one, or the lowest integer allowed.
    /// Karpenter picks at random; a fixed choice gives the same NodeClaim for the same cluster.
    #[must_use]
    pub fn any(&self) -> Option<String> {
        if !self.complement {
            return self.values.iter().next().map(|v| v.to_string());
        }
        let from = self.bounds().0.unwrap_or(0);
        // One candidate more than there are excluded values, so that at least one is not excluded.
        (from..=from.saturating_add(self.values.len() as i64))
            .map(|n| n.to_string())
            .find(|text| self.has(text))
    }

    /// The requirement that both put together make.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (gte, lte, possible) = self.common_bounds(other);
        let min_values = self.extra().min_values.max(other.extra().min_values);
        let key = Arc::clone(&self.key);
        if !possible {
            return Self::from_parts(key, false, [], (None, None), min_values);
        }
        let complement = self.complement && other.complement;
        let mut values = Values::new();
        let mut keep = |from: &Self, test: &dyn Fn(&Arc<str>) -> bool| {
            values.extend(
                from.values.iter().filter(|v| test(v) && within(v, gte, lte)).map(Arc::clone),
            );
        };
        match (self.complement, other.complement) {
            (true, true) => {
                keep(self, &|_| true);
                keep(other, &|_| true);
            }
            (true, false) => keep(other, &|v| !self.names(v)),
            (false, true) => keep(self, &|v| !other.names(v)),
            (false, false) => keep(self, &|v| other.names(v)),
        }
        // Values outside of the bounds are gone, so that a finite set has no more use for them.
        let bounds = if complement { (gte, lte) } else { (None, None) };
        Self::from_parts(key, complement, values, bounds, min_values)
    }

    /// Whether some value meets both, without building the intersection.
    #[must_use]
    pub fn has_intersection(&self, other: &Self) -> bool {
        let (gte, lte, possible) = self.common_bounds(other);
        let any = |from: &Self, against: &Self, named: bool| {
            from.values.iter().any(|v| against.names(v) == named && within(v, gte, lte))
        };
        possible
            && match (self.complement, other.complement) {
                // Two complements exclude finitely many values each, which leaves some. This holds
                // as an approximation when bounds leave only a few integers, as in Karpenter.
                (true, true) => true,
                (true, false) => any(other, self, false),
                (false, true) => any(self, other, false),
                (false, false) => any(self, other, true),
            }
    }

    /// The API form. One entry can hold either bounds or values; where a requirement has both, the
    /// excluded values are dropped, as in Karpenter.
    pub(super) fn to_api(&self) -> Vec<NodeSelectorRequirementWithMinValues> {
        let entry = |operator, values: Vec<String>| NodeSelectorRequirementWithMinValues {
            key: self.key.to_string(),
            min_values: self.min_values(),
            operator,
            values,
        };
        let mut entries = Vec::new();
        let (gte, lte) = self.bounds();
        if let Some(n) = gte {
            entries.push(entry(Operator::Gte, vec![n.to_string()]));
        }
        if let Some(n) = lte {
            entries.push(entry(Operator::Lte, vec![n.to_string()]));
        }
        if entries.is_empty() {
            entries.push(entry(self.operator(), self.values().map(str::to_owned).collect()));
        }
        entries
    }
}

fn within(value: &str, gte: Option<i64>, lte: Option<i64>) -> bool {
    if gte.is_none() && lte.is_none() {
        return true;
    }
    value.parse::<i64>().is_ok_and(|n| gte.is_none_or(|g| n >= g) && lte.is_none_or(|l| n <= l))
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.key, self.operator().as_str())?;
        if !self.values.is_empty() {
            let shown: Vec<&str> = self.values().take(5).collect();
            write!(f, " [{}", shown.join(" "))?;
            if self.values.len() > shown.len() {
                write!(f, " and {} others", self.values.len() - shown.len())?;
            }
            f.write_str("]")?;
        }
        let Extra { gte, lte, min_values } = self.extra();
        if let Some(n) = gte {
            write!(f, " >={n}")?;
        }
        if let Some(n) = lte {
            write!(f, " <={n}")?;
        }
        if let Some(n) = min_values {
            write!(f, " minValues {n}")?;
        }
        Ok(())
    }
}
