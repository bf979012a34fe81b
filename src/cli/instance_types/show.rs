//! Instance types printed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use serde::Serialize;

use crate::api::labels;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::requirements::{Requirement, Requirements};
use crate::scheduling::resources::{Name, ResourceList};
use crate::simulate::table::shown_price;

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// One line a type, for people.
    Table,
    /// Everything, for machines.
    Json,
    /// Everything, for people.
    Yaml,
}

/// All that is known of a type.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    name: &'a str,
    /// Values by key; several where the choice is open.
    labels: BTreeMap<&'a str, Vec<&'a str>>,
    capacity: &'a ResourceList,
    overhead: Overhead<'a>,
    allocatable: ResourceList,
    offerings: Vec<OfferingReport<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Overhead<'a> {
    kube_reserved: &'a ResourceList,
    system_reserved: &'a ResourceList,
    eviction_threshold: &'a ResourceList,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OfferingReport<'a> {
    capacity_type: &'a str,
    zone: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    capacity_reservation_id: &'a str,
    /// In the region's currency per hour; `None` where no price is known.
    price: Option<f64>,
    /// Nobody published the price.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    price_estimated: bool,
    available: bool,
}

impl<'a> Report<'a> {
    fn new(kind: &'a InstanceType) -> Self {
        let overhead = &kind.overhead;
        Self {
            name: &kind.name,
            labels: values(&kind.requirements),
            capacity: &kind.capacity,
            overhead: Overhead {
                kube_reserved: &overhead.kube_reserved,
                system_reserved: &overhead.system_reserved,
                eviction_threshold: &overhead.eviction_threshold,
            },
            allocatable: kind.allocatable(),
            offerings: kind
                .offerings
                .iter()
                .map(|o| OfferingReport {
                    capacity_type: o.capacity_type(),
                    zone: o.zone(),
                    capacity_reservation_id: o.reservation_id(),
                    price: Some(o.price).filter(|p| *p > 0.0),
                    price_estimated: o.price_estimated,
                    available: o.available,
                })
                .collect(),
        }
    }
}

fn values(requirements: &Requirements) -> BTreeMap<&str, Vec<&str>> {
    requirements
        .iter()
        .filter(|r| !r.is_complement())
        .map(|r| (&**r.key(), r.values().collect::<Vec<_>>()))
        .filter(|(_, values)| !values.is_empty())
        .collect()
}

/// The types in that form.
#[must_use]
pub fn show(output: Output, types: &[Arc<InstanceType>]) -> String {
    let reports: Vec<Report<'_>> = types.iter().map(|t| Report::new(t)).collect();
    match output {
        Output::Table => table(types),
        // Reports are plain data with text keys: they always serialize.
        Output::Json => serde_json::to_string_pretty(&reports).unwrap_or_default() + "\n",
        Output::Yaml => serde_saphyr::to_string(&reports).unwrap_or_default(),
    }
}

const HEADINGS: [&str; 10] = [
    "NAME",
    "ARCH",
    "CPU",
    "MEMORY",
    "PODS",
    "ALLOC-CPU",
    "ALLOC-MEMORY",
    "DEVICES",
    "ON-DEMAND",
    "SPOT",
];

fn table(types: &[Arc<InstanceType>]) -> String {
    let mut rows: Vec<[String; 10]> = vec![HEADINGS.map(str::to_owned)];
    rows.extend(types.iter().map(|t| row(t)));
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row(kind: &InstanceType) -> [String; 10] {
    let allocatable = kind.allocatable().to_quantities();
    let capacity = kind.capacity.to_quantities();
    let of = |map: &BTreeMap<String, _>, name: &str| -> String {
        map.get(name)
            .map(|q: &crate::scheduling::resources::ApiQuantity| q.0.clone())
            .unwrap_or_default()
    };
    let arch = kind.requirements.get(labels::ARCH).and_then(Requirement::single);
    [
        kind.name.to_string(),
        arch.unwrap_or_default().to_owned(),
        of(&capacity, "cpu"),
        of(&capacity, "memory"),
        of(&capacity, "pods"),
        of(&allocatable, "cpu"),
        of(&allocatable, "memory"),
        devices(&kind.capacity),
        price(kind, labels::CAPACITY_ON_DEMAND),
        price(kind, labels::CAPACITY_SPOT),
    ]
}

fn devices(capacity: &ResourceList) -> String {
    let list: Vec<String> = crate::cloud::aws::instancetype::capacity::DEVICES
        .iter()
        .map(|name| (name, capacity.get(&Name::from(*name))))
        .filter(|(_, amount)| *amount != 0)
        .map(|(name, amount)| format!("{name}={amount}"))
        .collect();
    list.join(",")
}

/// The least price of a capacity type, marked where it is estimated, or that none is available.
fn price(kind: &InstanceType, capacity_type: &str) -> String {
    let offers = || kind.offerings.iter().filter(|o| o.capacity_type() == capacity_type);
    let least = offers().filter(|o| o.available).min_by(|a, b| a.price.total_cmp(&b.price));
    match (least, offers().next()) {
        (Some(offer), _) => shown_price(offer.price, offer.price_estimated),
        (None, Some(_)) => "unavailable".to_owned(),
        (None, None) => "-".to_owned(),
    }
}
