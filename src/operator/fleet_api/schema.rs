//! The schema of the API's documents, made from their types.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use super::Timeline;
use crate::fleet::{Cost, Fleet, NodeRow, PodRow, PoolRow, SCHEMA};

/// What the event `change` of the stream carries: rows that changed, and lists that are always whole.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[allow(dead_code, reason = "written piece by piece, without copies of the rows")]
struct Change {
    /// When the figures were taken.
    time: String,
    /// Nodes that are new or changed.
    nodes: Vec<NodeRow>,
    /// Names of nodes that are gone.
    gone: Vec<String>,
    /// All pending pods.
    pods: Vec<PodRow>,
    /// All NodePools.
    node_pools: Vec<PoolRow>,
    /// What the nodes cost per hour.
    cost: Cost,
}

/// JSON Schema of `/v1/fleet`; its `$defs` have the rows, `Timeline` and `Change`.
pub fn schema() -> Schema {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    generator.subschema_for::<Timeline>();
    generator.subschema_for::<Change>();
    let mut schema = generator.into_root_schema_for::<Fleet>();
    schema.insert("$id".to_owned(), SCHEMA.into());
    schema
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use serde_json::{Map, Value};

    use super::*;

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/reference/fleet.md");
    /// What follows is made from the types.
    const MADE: &str = "<!-- From the types: UPDATE_DOCS=1 cargo test --lib the_reference_page_has_every_field -->\n";

    /// A description on one line.
    fn line(value: &Value) -> String {
        let text = value["description"].as_str().unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The type of a value, as the page names it.
    fn kind(value: &Value) -> String {
        if let Some(name) = value["$ref"].as_str() {
            let name = name.rsplit('/').next().unwrap();
            return format!("[{name}](#{})", name.to_lowercase());
        }
        if let Some(fixed) = value["const"].as_str() {
            return format!("`{fixed}`");
        }
        if let Some(some) = value["anyOf"].as_array() {
            return kind(&some[0]);
        }
        let name = match &value["type"] {
            Value::Array(names) => names[0].as_str().unwrap(),
            name => name.as_str().unwrap_or_else(|| panic!("no type: {value}")),
        };
        match name {
            "array" if value.get("prefixItems").is_some() => {
                let items = value["prefixItems"].as_array().unwrap();
                items.iter().map(kind).collect::<Vec<_>>().join(" and ")
            }
            "array" => format!("list of {}", kind(&value["items"])),
            "object" => format!("map to {}", kind(&value["additionalProperties"])),
            name => name.to_owned(),
        }
    }

    fn rows(page: &mut String, of: &Value, left_out: &[&str]) {
        let required = of["required"].as_array().cloned().unwrap_or_default();
        for (name, field) in of["properties"].as_object().into_iter().flatten() {
            if left_out.contains(&name.as_str()) {
                continue;
            }
            let may = if required.iter().any(|r| r == name) { "" } else { ", optional" };
            writeln!(page, "| `{name}` | {}{may} | {} |", kind(field), line(field)).unwrap();
        }
    }

    fn table(page: &mut String, title: &str, of: &Value) {
        let about = line(of);
        write!(page, "\n## {title}\n\n{about}\n\n| field | type | |\n|---|---|---|\n").unwrap();
        rows(page, of, &[]);
        for variant in of["oneOf"].as_array().into_iter().flatten() {
            let tag = &variant["properties"]["waitsFor"];
            writeln!(page, "| `waitsFor` | {} | {} |", kind(tag), line(variant)).unwrap();
            rows(page, variant, &["waitsFor"]);
        }
    }

    #[test]
    fn the_reference_page_has_every_field() {
        let schema = serde_json::to_value(schema()).unwrap();
        let mut made = MADE.to_owned();
        table(&mut made, "Fleet", &schema);
        let none = Map::new();
        for (name, of) in schema["$defs"].as_object().unwrap_or(&none) {
            if of["type"] == "object" {
                table(&mut made, name, of);
            }
        }
        let page = std::fs::read_to_string(PAGE).unwrap();
        let (own, _) = page.split_once(MADE).unwrap();
        let wanted = format!("{own}{made}");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(PAGE, wanted).unwrap();
        } else {
            assert_eq!(page, wanted, "UPDATE_DOCS=1 writes it");
        }
    }

    #[test]
    fn the_schema_names_its_version_and_every_document() {
        let schema = serde_json::to_value(schema()).unwrap();
        assert_eq!(schema["$id"], SCHEMA);
        for name in ["NodeRow", "PoolRow", "PodRow", "Verdict", "Launch", "Timeline", "Change"] {
            assert!(schema["$defs"][name].is_object(), "{name}");
        }
    }
}
