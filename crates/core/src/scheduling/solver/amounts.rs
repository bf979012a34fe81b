//! Resource amounts as vectors over the resources that matter in this round.

use smallvec::SmallVec;

use crate::scheduling::resources::{Name, ResourceList};

/// One amount a resource, in the order of [`Resources`].
pub(super) type Amounts = SmallVec<[i64; 6]>;

/// The most that any one amount counts for, so that sums of a few are no larger than a number may be.
const MOST: i64 = i64::MAX / 4;

/// The resources that something in this round requests.
#[derive(Debug, Default)]
pub(super) struct Resources {
    names: Vec<Name>,
}

impl Resources {
    /// Notes every resource of a list.
    pub(super) fn note(&mut self, list: &ResourceList) {
        for (name, _) in list.iter() {
            if !self.names.contains(name) {
                self.names.push(name.clone());
            }
        }
    }

    /// Their names.
    pub(super) fn names(&self) -> &[Name] {
        &self.names
    }

    /// Number of resources.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Where a resource stands, if it matters.
    fn position(&self, name: &Name) -> Option<usize> {
        self.names.iter().position(|n| n == name)
    }

    /// The amounts of a list; resources that nobody requests are left out.
    pub(super) fn vector(&self, list: &ResourceList) -> Amounts {
        let mut amounts = self.zero();
        self.add_to(&mut amounts, list, 1);
        amounts
    }

    /// Adds a list `sign` times; returns whether all that it names matters.
    pub(super) fn add_to(&self, amounts: &mut [i64], list: &ResourceList, sign: i64) -> bool {
        let mut all = true;
        for (name, value) in list.iter() {
            match self.position(name) {
                Some(at) => {
                    amounts[at] = amounts[at].saturating_add(value.clamp(-MOST, MOST) * sign);
                }
                None => all = false,
            }
        }
        all
    }

    /// Nothing of anything.
    pub(super) fn zero(&self) -> Amounts {
        SmallVec::from_elem(0, self.names.len())
    }
}

/// True when every amount of `a` together with `b` is at most that of `total`.
#[inline]
pub(super) fn sum_fits(a: &[i64], b: &[i64], total: &[i64]) -> bool {
    a.iter().zip(b).zip(total).all(|((x, y), t)| x + y <= *t)
}

/// True when every amount of `a` is at most that of `total`.
#[inline]
pub(super) fn fits(a: &[i64], total: &[i64]) -> bool {
    a.iter().zip(total).all(|(x, t)| x <= t)
}

/// Adds `b` to `a`.
#[inline]
pub(super) fn add(a: &mut [i64], b: &[i64]) {
    for (x, y) in a.iter_mut().zip(b) {
        *x = x.saturating_add(*y);
    }
}

/// Subtracts `b` from `a`.
#[inline]
pub(super) fn subtract(a: &mut [i64], b: &[i64]) {
    for (x, y) in a.iter_mut().zip(b) {
        *x = x.saturating_sub(*y);
    }
}
