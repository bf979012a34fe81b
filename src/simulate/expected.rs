//! Which fields a type has at a place of a document, found out by walking the type's own reader there.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Field(String),
    Item,
}

/// The fields that a `T` may have at the end of the path; `None` when that is no object of fixed
/// fields.
pub(crate) fn fields<'de, T: Deserialize<'de>>(path: &[Step]) -> Option<&'static [&'static str]> {
    let found = RefCell::new(None);
    // The walk always ends in an error: there is no document behind it.
    let walk = &mut <dyn erased_serde::Deserializer>::erase(Walk { path, found: &found });
    // Serde passes the field names only to a deserializer, so one is made that asks for nothing
    // else.
    let _ = erased_serde::deserialize::<T>(walk);
    found.into_inner()
}

#[derive(Debug)]
struct Stop;

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("end of the walk")
    }
}

impl std::error::Error for Stop {}

impl serde::de::Error for Stop {
    fn custom<M: fmt::Display>(_: M) -> Self {
        Self
    }
}

/// A document that consists of a path.
#[derive(Clone, Copy)]
struct Walk<'a> {
    path: &'a [Step],
    found: &'a RefCell<Option<&'static [&'static str]>>,
}

impl<'de> Deserializer<'de> for Walk<'_> {
    type Error = Stop;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match self.path.first() {
            Some(_) if matches!(self.path[0], Step::Item) => visitor.visit_seq(self),
            Some(_) => visitor.visit_map(self),
            None => Err(Stop),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        if self.path.is_empty() {
            *self.found.borrow_mut() = Some(fields);
            return Err(Stop);
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de> SeqAccess<'de> for Walk<'_> {
    type Error = Stop;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Stop> {
        seed.deserialize(Walk { path: &self.path[1..], found: self.found }).map(Some)
    }
}

impl<'de> MapAccess<'de> for Walk<'_> {
    type Error = Stop;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Stop> {
        let Some(Step::Field(name)) = self.path.first() else { return Ok(None) };
        let key: StrDeserializer<'_, Stop> = name.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Stop> {
        seed.deserialize(Walk { path: &self.path[1..], found: self.found })
    }
}

/// Fails unless the table of a reference page whose first heading is `heading` lists the fields of a
/// `T`, each in code quotes, and nothing else.
#[cfg(test)]
pub(crate) fn assert_documented<'de, T: Deserialize<'de>>(page: &str, heading: &str) {
    let path = format!("{}/docs/src/reference/{page}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let start = format!("| {heading} | Content |");
    let rows = text.lines().skip_while(|l| *l != start).skip(2).take_while(|l| l.starts_with('|'));
    let first = rows.filter_map(|row| row.split('|').nth(1));
    let mut listed: Vec<&str> = first.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let mut known = fields::<T>(&[]).unwrap_or_default().to_vec();
    listed.sort_unstable();
    known.sort_unstable();
    assert!(!known.is_empty(), "{heading} has no fields");
    assert_eq!(listed, known, "{page}, {heading}");
}
