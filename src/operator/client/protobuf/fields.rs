//! Which fields the messages have, without those that nothing reads.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::operator::readable::{Unread, unread};

/// Made by `make data` from the tags of Kubernetes' Go types.
const TABLE: &str = include_str!("../../../../data/kubernetes-fields.tsv");

/// What stands where an object's own kind is asked for: the item of a list.
const ITEMS: &str = "items";

/// A message's fields, by number.
pub(super) type Message = Vec<Field>;

/// A field of a message.
pub(super) struct Field {
    pub(super) number: u32,
    /// The name in JSON; empty for a message whose fields JSON has in the outer object.
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) kind: Kind,
    /// Go writes the value always, and leaves it out of JSON where it is zero.
    pub(super) unset_if_zero: bool,
}

/// How many values a field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One.
    One,
    /// One per occurrence.
    List,
    /// A key and a value per occurrence.
    Map,
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
    Boolean,
    /// Seconds and nanoseconds.
    Time,
    /// An amount as text, in a message of its own.
    Quantity,
    /// A port or a percentage.
    IntOrText,
    /// A message, by its place in [`Fields::messages`].
    Message(usize),
}

/// All messages that a list of one kind consists of.
pub(super) struct Fields {
    messages: Vec<Message>,
    root: usize,
}

impl Fields {
    /// The fields of a kind that is listed and watched, of its list, or of a status; `None` for any other.
    pub(super) fn of(kind: &str) -> Option<&'static Self> {
        static POD: LazyLock<Fields> = LazyLock::new(|| Fields::read("Pod", "Pod"));
        static PODS: LazyLock<Fields> = LazyLock::new(|| Fields::read("PodList", "Pod"));
        static NODE: LazyLock<Fields> = LazyLock::new(|| Fields::read("Node", "Node"));
        static NODES: LazyLock<Fields> = LazyLock::new(|| Fields::read("NodeList", "Node"));
        static STATUS: LazyLock<Fields> = LazyLock::new(|| Fields::read("Status", "Status"));
        match kind {
            "Pod" => Some(&POD),
            "PodList" => Some(&PODS),
            "Node" => Some(&NODE),
            "NodeList" => Some(&NODES),
            "Status" => Some(&STATUS),
            _ => None,
        }
    }

    /// The fields of the whole answer.
    pub(super) fn root(&self) -> &Message {
        &self.messages[self.root]
    }

    /// The fields of a message.
    pub(super) fn message(&self, at: usize) -> &Message {
        &self.messages[at]
    }

    fn read(root: &str, object: &str) -> Self {
        let mut rows: HashMap<&str, Vec<[&'static str; 5]>> = HashMap::new();
        for line in TABLE.lines() {
            let mut columns = line.split('\t');
            let message = columns.next().unwrap_or_default();
            let row = std::array::from_fn(|_| columns.next().unwrap_or_default());
            rows.entry(message).or_default().push(row);
        }
        let mut reader = Reader { rows, known: HashMap::new(), messages: Vec::new() };
        let unread = Some(unread(object));
        let root = match root == object {
            true => reader.message(root, unread, None),
            false => reader.message(root, None, unread),
        };
        Self { messages: reader.messages, root }
    }
}

struct Reader<'a> {
    rows: HashMap<&'a str, Vec<[&'static str; 5]>>,
    /// Messages that were read already: by name, and by what of them is not read.
    known: HashMap<(String, Option<*const Unread>), usize>,
    messages: Vec<Message>,
}

impl Reader<'_> {
    /// Reads a message without the fields that are not read, which start at the items of a list.
    fn message(
        &mut self,
        name: &str,
        unread: Option<&'static Unread>,
        of_items: Option<&'static Unread>,
    ) -> usize {
        let key = (name.to_owned(), unread.map(std::ptr::from_ref));
        if let Some(at) = self.known.get(&key) {
            return *at;
        }
        // Its place is taken before its fields are read, so that a message may contain itself.
        let at = self.messages.len();
        self.messages.push(Vec::new());
        self.known.insert(key, at);
        let rows = self.rows.get(name).cloned().unwrap_or_default();
        let mut fields = Vec::new();
        for [number, field, shape, kind, flag] in rows {
            let inline = flag == "inline";
            let below = match of_items.filter(|_| field == ITEMS) {
                Some(items) => Some(items),
                None if inline => unread,
                None => unread.and_then(|u| u.field(field)),
            };
            let passed_over = !inline && below.is_some_and(Unread::is_whole);
            let Ok(number) = number.parse() else { continue };
            if passed_over {
                continue;
            }
            fields.push(Field {
                number,
                name: if inline { "" } else { field },
                shape: match shape {
                    "list" => Shape::List,
                    "map" => Shape::Map,
                    _ => Shape::One,
                },
                kind: self.kind(kind, below),
                unset_if_zero: flag == "unless-zero",
            });
        }
        fields.sort_by_key(|field| field.number);
        self.messages[at] = fields;
        at
    }

    fn kind(&mut self, name: &str, unread: Option<&'static Unread>) -> Kind {
        match name {
            "text" => Kind::Text,
            "number" => Kind::Number,
            "boolean" => Kind::Boolean,
            "time" => Kind::Time,
            "quantity" => Kind::Quantity,
            "int-or-text" => Kind::IntOrText,
            message => Kind::Message(self.message(message, unread, None)),
        }
    }
}
