//! Groups that differ in nothing but their zone become one.

use std::collections::BTreeSet;

use super::group::Group;

/// Merges groups whose nodes are the same and whose zones differ: Cluster Autoscaler wants a group per
/// zone where pods have volumes, a NodePool chooses the zone for each node.
pub fn merge(groups: Vec<Group>) -> Vec<Group> {
    let mut merged: Vec<Group> = Vec::new();
    for group in groups {
        let twin = merged.iter_mut().find(|other| {
            !group.zones.is_empty()
                && !other.zones.is_empty()
                && other.zones.is_disjoint(&group.zones)
                && alike(other) == alike(&group)
        });
        match twin {
            Some(twin) => join(twin, group),
            None => merged.push(group),
        }
    }
    for group in merged.iter_mut().filter(|g| g.sources.len() > 1) {
        group.name = common_name(&group.sources, &group.zones);
        group.note(format!(
            "{} became one: its limit is the sum of theirs, and no zone has a limit of its own; --keep-zones keeps a NodePool each",
            group.sources.join(", ")
        ));
    }
    merged
}

/// The group without what may differ from zone to zone.
fn alike(group: &Group) -> Group {
    let mut rest = group.clone();
    rest.name.clear();
    rest.sources.clear();
    rest.zones.clear();
    rest.subnets.clear();
    rest.notes.clear();
    (rest.min, rest.max) = (0, 0);
    // Tags hardly ever bear on nodes, and often name the group itself.
    rest.class.shift_remove("tags");
    rest
}

fn join(group: &mut Group, other: Group) {
    group.sources.extend(other.sources);
    group.zones.extend(other.zones);
    group.subnets.extend(other.subnets);
    group.min += other.min;
    group.max += other.max;
    for note in other.notes {
        group.note(note);
    }
    let tags = other.class.get("tags").cloned().unwrap_or_default();
    if let Some(own) = group.class.get_mut("tags").and_then(|t| t.as_object_mut()) {
        // A tag of one of the groups would be wrong on the nodes of the other.
        own.retain(|key, value| tags.get(key) == Some(value));
    }
}

/// The first name without its zone, else what the names begin with in common, else the first of them.
fn common_name(names: &[String], zones: &BTreeSet<String>) -> String {
    let first = names.first().map(String::as_str).unwrap_or_default();
    if let Some(base) = zones.iter().find_map(|zone| first.strip_suffix(zone.as_str())) {
        let base = base.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        if !base.is_empty() {
            return base.to_owned();
        }
    }
    let common = names.iter().fold(first, |common, name| {
        let pairs = common.char_indices().zip(name.chars());
        let end =
            pairs.take_while(|((_, a), b)| a == b).last().map_or(0, |((i, c), _)| i + c.len_utf8());
        &common[..end]
    });
    let trimmed = common.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
    if trimmed.is_empty() { first.to_owned() } else { trimmed.to_owned() }
}
