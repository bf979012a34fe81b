//! Numbers that stand for things of one kind, and the collections that only such a number opens: to
//! take a class for a need does not compile.

use std::hash::Hash;
use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

use indexmap::{Equivalent, IndexSet};
use rustc_hash::FxBuildHasher;

/// A place in a [`List`] or [`Interned`].
pub trait Id: Copy {
    /// The number of a place.
    fn new(at: usize) -> Self;

    /// The place of a number.
    fn at(self) -> usize;
}

/// Makes a type of numbers for each kind of thing.
macro_rules! ids {
    ($($(#[$doc:meta])* $vis:vis $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis struct $name(u32);

        impl $name {
            /// Stands for nothing.
            #[allow(dead_code, reason = "not every kind has an absent one")]
            pub(crate) const NONE: Self = Self(u32::MAX);
            /// The first of its kind.
            #[allow(dead_code, reason = "not every kind has a special first one")]
            pub(crate) const FIRST: Self = Self(0);

            /// Whether it stands for nothing.
            #[allow(dead_code, reason = "not every kind has an absent one")]
            #[inline]
            pub(crate) fn is_none(self) -> bool {
                self == Self::NONE
            }
        }

        impl $crate::scheduling::ids::Id for $name {
            #[inline]
            fn new(at: usize) -> Self {
                Self(at as u32)
            }

            #[inline]
            fn at(self) -> usize {
                self.0 as usize
            }
        }
    )+};
}

pub(crate) use ids;

/// Things of one kind whose numbers follow one another.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Run<I> {
    start: usize,
    end: usize,
    of: PhantomData<fn(I)>,
}

impl<I: Id> Run<I> {
    /// From one number up to, but not including, another.
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self { start, end, of: PhantomData }
    }

    /// All in their order.
    pub(crate) fn iter(self) -> impl Iterator<Item = I> {
        (self.start..self.end).map(I::new)
    }
}

/// All numbers below one, as ids.
pub(crate) fn ids_below<I: Id>(count: usize) -> impl DoubleEndedIterator<Item = I> + use<I> {
    (0..count).map(I::new)
}

/// Things of one kind by their number.
#[derive(Debug)]
pub(crate) struct List<I, T> {
    items: Vec<T>,
    of: PhantomData<fn(I)>,
}

impl<I, T: Clone> Clone for List<I, T> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone(), of: PhantomData }
    }
}

impl<I, T> Default for List<I, T> {
    fn default() -> Self {
        Self { items: Vec::new(), of: PhantomData }
    }
}

impl<I: Id, T> List<I, T> {
    /// As many of the same.
    pub(crate) fn of(item: T, count: usize) -> Self
    where
        T: Clone,
    {
        Self { items: vec![item; count], of: PhantomData }
    }

    /// Adds one; returns its number.
    pub(crate) fn push(&mut self, item: T) -> I {
        self.items.push(item);
        I::new(self.items.len() - 1)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Makes it at least so long.
    pub(crate) fn grow(&mut self, count: usize, item: T)
    where
        T: Clone,
    {
        if self.items.len() < count {
            self.items.resize(count, item);
        }
    }

    /// All in their order.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.items.iter()
    }

    /// All in their order, to change.
    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.items.iter_mut()
    }

    /// All numbers in their order.
    pub(crate) fn ids(&self) -> impl DoubleEndedIterator<Item = I> + use<I, T> {
        ids_below(self.items.len())
    }

    /// All with their numbers.
    pub(crate) fn pairs(&self) -> impl DoubleEndedIterator<Item = (I, &T)> {
        self.items.iter().enumerate().map(|(at, item)| (I::new(at), item))
    }

    /// The one with a number, if there is one.
    pub(crate) fn get(&self, id: I) -> Option<&T> {
        self.items.get(id.at())
    }

    /// The last.
    pub(crate) fn last(&self) -> Option<&T> {
        self.items.last()
    }

    /// The number of the first that meets a condition.
    pub(crate) fn position(&self, condition: impl FnMut(&T) -> bool) -> Option<I> {
        self.items.iter().position(condition).map(I::new)
    }

    /// Sorts the things, which get other numbers by that.
    pub(crate) fn sort_by_cached_key<K: Ord>(&mut self, key: impl FnMut(&T) -> K) {
        self.items.sort_by_cached_key(key);
    }

    /// Takes out the ones from a place on.
    pub(crate) fn split_off(&mut self, at: usize) -> Vec<T> {
        self.items.split_off(at)
    }
}

impl<I, T> From<Vec<T>> for List<I, T> {
    fn from(items: Vec<T>) -> Self {
        Self { items, of: PhantomData }
    }
}

impl<I, T> FromIterator<T> for List<I, T> {
    fn from_iter<It: IntoIterator<Item = T>>(items: It) -> Self {
        Self { items: items.into_iter().collect(), of: PhantomData }
    }
}

impl<'a, I, T> IntoIterator for &'a List<I, T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

impl<I: Id, T> Index<I> for List<I, T> {
    type Output = T;

    #[inline]
    fn index(&self, id: I) -> &T {
        &self.items[id.at()]
    }
}

impl<I: Id, T> IndexMut<I> for List<I, T> {
    #[inline]
    fn index_mut(&mut self, id: I) -> &mut T {
        &mut self.items[id.at()]
    }
}

/// Different things of one kind by their number, which is that of the first time it was seen.
#[derive(Clone)]
pub(crate) struct Interned<I, T> {
    items: IndexSet<T, FxBuildHasher>,
    of: PhantomData<fn(I)>,
}

impl<I, T> Default for Interned<I, T> {
    fn default() -> Self {
        Self { items: IndexSet::default(), of: PhantomData }
    }
}

impl<I: Id, T: Hash + Eq> Interned<I, T> {
    /// The number of a thing, seen before or not.
    pub(crate) fn insert(&mut self, item: T) -> I {
        I::new(self.items.insert_full(item).0)
    }

    /// The number of a thing that was seen before.
    pub(crate) fn find<Q: ?Sized + Hash + Equivalent<T>>(&self, item: &Q) -> Option<I> {
        self.items.get_index_of(item).map(I::new)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// All in their order.
    pub(crate) fn iter(&self) -> indexmap::set::Iter<'_, T> {
        self.items.iter()
    }

    /// All numbers in their order.
    pub(crate) fn ids(&self) -> impl DoubleEndedIterator<Item = I> + use<I, T> {
        ids_below(self.items.len())
    }

    /// The one with a number, if there is one.
    pub(crate) fn get(&self, id: I) -> Option<&T> {
        self.items.get_index(id.at())
    }
}

impl<I: Id, T> Index<I> for Interned<I, T> {
    type Output = T;

    #[inline]
    fn index(&self, id: I) -> &T {
        &self.items[id.at()]
    }
}
