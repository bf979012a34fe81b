//! The list of metrics against Karpenter's, and against the code that writes them.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;

/// Name, type and labels of Karpenter's metrics.
fn karpenters() -> BTreeMap<&'static str, (&'static str, Vec<String>)> {
    let rows = include_str!("karpenter-1.14.txt").lines().filter(|l| !l.starts_with('#'));
    rows.map(|row| {
        let mut words = row.split(' ');
        let (name, kind) = (words.next().unwrap(), words.next().unwrap());
        let mut labels = Vec::new();
        for label in words.next().into_iter().flat_map(|l| l.split(',')) {
            match label {
                "W" => labels.extend(NODE_LABELS.iter().map(|(_, label)| label.clone())),
                other => labels.push(other.to_owned()),
            }
        }
        labels.sort();
        (name, (kind, labels))
    })
    .collect()
}

#[test]
fn every_metric_of_karpenter_is_there_with_its_type_and_labels() {
    let ours: BTreeMap<String, (&str, Vec<String>)> = catalog()
        .into_iter()
        .map(|mut d| {
            d.labels.sort();
            (d.name, (d.kind, d.labels))
        })
        .collect();
    for (name, theirs) in karpenters() {
        assert_eq!(ours.get(name), Some(&theirs), "{name}");
    }
    for name in OWN {
        assert!(ours.contains_key(*name) && !karpenters().contains_key(name), "{name}");
    }
}

/// Metrics that only this project has: their names must not be taken by Karpenter.
pub(super) const OWN: &[&str] = &[
    "karpenter_cloudprovider_feature_disabled",
    "karpenter_cluster_state_unreadable_objects",
    "karpenter_cost_nodes_dollars_per_hour",
    "karpenter_cost_pods_dollars_per_hour",
    "karpenter_cost_saved_dollars_total",
    "karpenter_cost_saving_dollars_per_hour",
    "karpenter_cost_unused_dollars_per_hour",
    "rest_client_requests_total",
];

/// The names of the constants of a file of definitions, with the metric of each.
fn constants(text: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    text.lines().filter_map(|line| {
        let (constant, rest) = line.trim().split_once(": ")?;
        let upper =
            constant.chars().all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit());
        let (_, name) = rest.split_once("(\"").filter(|_| upper)?;
        Some((constant, name.split('"').next()?))
    })
}

/// The code of a source folder without tests, definitions and comments.
fn code(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            code(&path, text);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("list.rs") {
            let file = std::fs::read_to_string(&path).unwrap();
            let own = file.split("\n#[cfg(test)]\nmod tests").next().unwrap();
            let own = own.lines().filter(|l| !l.trim_start().starts_with("//"));
            own.filter(|l| !l.contains(": Family = scraped")).for_each(|l| {
                text.push_str(l);
                text.push('\n');
            });
        }
    }
}

#[test]
fn every_metric_of_the_list_has_code_that_writes_it() {
    let mut text = String::new();
    code(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    let words: std::collections::HashSet<&str> =
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let definitions = [include_str!("list.rs"), include_str!("scraped.rs")];
    let all: Vec<_> = definitions.into_iter().flat_map(constants).collect();
    assert!(all.len() > 80, "{}", all.len());
    let idle: Vec<&str> =
        all.into_iter().filter(|(c, _)| !words.contains(c)).map(|(_, name)| name).collect();
    assert!(idle.is_empty(), "metrics that nothing writes: {idle:?}");
}

#[test]
fn bounds_are_those_of_karpenter() {
    let bounds = |name: &str| {
        let text = render();
        let start = format!("{name}_bucket{{");
        let of =
            |l: &str| l.split("le=\"").nth(1).and_then(|l| l.split('"').next()).map(str::to_owned);
        let lines = text.lines().filter(|l| l.starts_with(&start) && l.contains("bounds"));
        lines.filter_map(of).collect::<Vec<_>>()
    };
    BATCH_SIZE.with_label_values(&["bounds"]).observe(1.0);
    let sizes = bounds("karpenter_cloudprovider_batcher_batch_size");
    assert_eq!(sizes[..9], ["1", "2", "4", "5", "10", "15", "20", "25", "30"]);
    assert_eq!(sizes[9], "40");
    AWS_REQUEST_DURATION.with_label_values(&["bounds", "x", "200"]).observe(1.0);
    let times = bounds("aws_sdk_go_request_duration_seconds");
    assert_eq!(times[..3], ["0.01", "0.015", "0.0225"]);
    AWS_REQUEST_RETRIES.with_label_values(&["bounds", "x", "200"]).observe(1.0);
    assert_eq!(bounds("aws_sdk_go_request_retry_count").len(), 12);
    status::ANY.termination_seconds.with_label_values(&["bounds", "x"]).observe(1.0);
    assert_eq!(bounds("operator_termination_duration_seconds")[..2], ["0.005", "0.01"]);
    CLIENT_GO_DURATION.with_label_values(&["bounds", "", "", "", ""]).observe(1.0);
    assert_eq!(bounds("client_go_request_duration_seconds")[..2], ["0.001", "0.0015"]);
}

#[test]
fn a_failed_call_of_the_provider_has_the_release_s_labels() {
    provider_failed(["c", "Create", "aws"], "", "pool");
    let counted = CLOUDPROVIDER_ERRORS.with_label_values(&["c", "Create", "aws", ""]);
    assert!((counted.get() - 1.0).abs() < f64::EPSILON);
}

#[test]
fn every_metric_registers_and_shows() {
    init(Some("abcdef0"), Options::default());
    let text = render();
    assert!(text.contains("karpenter_build_info{"));
    assert!(text.contains("controller_runtime_conversion_webhook_panics_total 0"));
    assert!(text.contains(
        r#"karpenter_voluntary_disruption_consolidation_timeouts_total{consolidation_type="multi"} 0"#
    ));
}

#[test]
fn node_labels_are_short_and_distinct() {
    let shown: Vec<&str> = NODE_LABELS.iter().map(|(_, label)| label.as_str()).collect();
    for label in ["nodepool", "zone", "instance_type", "capacity_type", "instance_cpu"] {
        assert!(shown.contains(&label), "{label}");
    }
    let distinct: std::collections::BTreeSet<&str> = shown.iter().copied().collect();
    assert_eq!(distinct.len(), shown.len());
}

/// The metrics that a query reads.
fn metrics_of(query: &str) -> Vec<&str> {
    const STARTS: &[&str] = &[
        "aws_sdk_go_",
        "client_go_",
        "controller_runtime_",
        "karpenter_",
        "leader_election_",
        "operator_",
        "process_",
        "workqueue_",
    ];
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| STARTS.iter().any(|start| word.starts_with(start))).collect()
}

/// Fails unless every metric of a query is in the list.
fn check_query(query: &str, place: &str) {
    let catalog = catalog();
    let found = metrics_of(query);
    assert!(!found.is_empty(), "{place}: {query}");
    for name in &found {
        let known = catalog.iter().any(|d| {
            let parts: &[&str] = if matches!(d.kind, "histogram" | "summary") {
                &["", "_bucket", "_sum", "_count"]
            } else {
                &[""]
            };
            parts.iter().any(|part| name.strip_suffix(part) == Some(&d.name))
        });
        assert!(known, "{place}: no metric {name}");
    }
    check_labels(query, place, &found);
}

/// Fails unless some metric of a query has each label that the query names.
fn check_labels(query: &str, place: &str, metrics: &[&str]) {
    let catalog = catalog();
    let mut labels = vec!["le", "quantile"];
    for d in catalog.iter().filter(|d| metrics.iter().any(|name| name.starts_with(&d.name))) {
        labels.extend(d.labels.iter().map(String::as_str));
    }
    let matchers = regex::Regex::new(r#"(\w+)(?:=|!=|=~|!~)""#).unwrap();
    let groups = regex::Regex::new(r"by \(([^)]*)\)").unwrap();
    let matched = matchers.captures_iter(query).map(|c| c.get(1).unwrap().as_str());
    let grouped = groups.captures_iter(query).map(|c| c.get(1).unwrap().as_str());
    for label in matched.chain(grouped.flat_map(|list| list.split(", "))) {
        assert!(labels.contains(&label), "{place}: no label {label} in {query}");
    }
}

fn chart(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/karpenter").join(path)
}

#[test]
fn dashboards_ask_for_metrics_that_are_there() {
    for name in ["capacity", "controller", "cost", "disruption"] {
        let path = chart(&format!("dashboards/{name}.json"));
        let board: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let panels = board["panels"].as_array().unwrap();
        assert!(panels.len() >= 8, "{name}");
        for panel in panels {
            for target in panel["targets"].as_array().unwrap() {
                let query = target["expr"].as_str().unwrap();
                check_query(query, name);
                // A legend shows labels that a sum keeps, or nothing would be in their place. Without a
                // sum there are also those that Prometheus adds, such as `pod`.
                if !query.contains(" by (") {
                    continue;
                }
                let legend = target["legendFormat"].as_str().unwrap_or_default();
                for label in legend.split("{{").skip(1).map(|l| l.split("}}").next().unwrap()) {
                    assert!(query.contains(label), "{name}: no {label} in {query}");
                }
            }
        }
        for variable in board["templating"]["list"].as_array().unwrap() {
            if let Some(query) = variable["query"]["query"].as_str() {
                check_query(query, name);
            }
        }
    }
}

#[test]
fn every_alert_asks_for_metrics_that_are_there_and_has_a_runbook() {
    let text = std::fs::read_to_string(chart("alerts/karpenter.yaml")).unwrap();
    let rules: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src/alerts.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    let all: Vec<_> = groups.iter().flat_map(|g| g["rules"].as_array().unwrap()).collect();
    assert!(all.len() >= 12);
    let mut names = Vec::new();
    for rule in all {
        let name = rule["alert"].as_str().unwrap();
        check_query(rule["expr"].as_str().unwrap(), name);
        assert!(docs.contains(&format!("\n## {name}\n")), "no runbook for {name}");
        for field in ["summary", "description"] {
            assert!(rule["annotations"][field].is_string(), "{name}: {field}");
        }
        assert!(rule["labels"]["severity"].is_string(), "{name}");
        names.push(name);
    }
    let sections = docs.lines().filter_map(|l| l.strip_prefix("## "));
    for section in sections {
        assert!(names.contains(&section), "a runbook of no alert: {section}");
    }
}

#[test]
fn a_source_writes_until_its_owner_is_gone_and_is_forgotten_then() {
    let family = Family::new("karpenter_test_owned", "gauge", "Of an owner.", &[]);
    let shown = || render().contains("karpenter_test_owned 7");
    let (owner, held) = (Arc::new(7.0_f64), Arc::new(()));
    let of_source = Arc::downgrade(&held);
    add_source(&owner, move |value, page| {
        let _kept = &held;
        if let Some(mut lines) = page.family(&family) {
            lines.add(&[], *value);
        }
    });
    assert!(shown());
    drop(owner);
    assert!(!shown());
    // Another test may be rendering what there was.
    let forgotten = (0..1000).any(|_| {
        add_source(&Arc::new(0), |_, _| ());
        #[expect(clippy::disallowed_methods, reason = "no runtime is here")]
        std::thread::sleep(std::time::Duration::from_millis(1));
        of_source.upgrade().is_none()
    });
    assert!(forgotten);
}

/// The table of the reference page.
fn reference() -> String {
    let row = |d: &Definition| {
        let stage = d.stage.map_or_else(|| "-".to_owned(), |stage| stage.to_string());
        format!("| `{}` | {} | {stage} | {} |\n", d.name, d.kind, d.help)
    };
    let rows: String = catalog().iter().map(row).collect();
    format!("| metric | type | stage | |\n|---|---|---|---|\n{rows}")
}

/// The page is written by `UPDATE_DOCS=1 cargo test the_reference_page`.
#[test]
fn the_reference_page_lists_every_metric_with_its_stage() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/reference/metrics.md");
    let text = std::fs::read_to_string(page).unwrap();
    let begin = text.find("| metric | type |").unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(page, format!("{}{}", &text[..begin], reference())).unwrap();
        return;
    }
    assert_eq!(&text[begin..], reference());
}
