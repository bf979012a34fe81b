//! Pods of nodes that are only marked: they keep their room, and no node is launched for them.

use super::*;

fn held(names: &[&str]) -> HashSet<PodKey> {
    names.iter().map(|name| PodKey::new("n", name)).collect()
}

fn solved(nodes: &[&str], pods: &[(&str, &str)], held_pods: &[&str]) -> Results {
    let pods = pods.iter().map(|(name, cpu)| pod(name, cpu, json!({}))).collect();
    let mut input = snapshot(vec![pool("p", json!({}))], pods);
    input.nodes = nodes
        .iter()
        .enumerate()
        .map(|(at, cpu)| {
            let name = format!("n{at}");
            let node = serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "10"}}}))
            .unwrap();
            NodeView { node: Some(Arc::new(node)), ..NodeView::default() }.into()
        })
        .collect();
    solve_holding(&input, &held(held_pods), &|_| true)
}

fn planned(results: &Results) -> Vec<&str> {
    results.new_claims.iter().flat_map(|c| &c.pods).map(|key| &*key.name).collect()
}

#[test]
fn no_node_is_launched_for_a_held_pod() {
    let results = solved(&[], &[("a", "1")], &["a"]);
    assert!(results.new_claims.is_empty() && results.errors.is_empty());
    // Nor is one made larger for it.
    let results = solved(&[], &[("a", "3"), ("b", "1")], &["a"]);
    assert_eq!(planned(&results), ["b"]);
    assert_eq!(&*results.new_claims[0].cheapest().unwrap().0.name, "small");
}

#[test]
fn a_held_pod_keeps_its_room_on_a_node_that_exists() {
    let results = solved(&["2"], &[("a", "2"), ("b", "1")], &["a"]);
    assert_eq!(results.existing, [("n0".to_owned(), vec![PodKey::new("n", "a")])]);
    assert_eq!(planned(&results), ["b"]);
}

#[test]
fn a_held_pod_that_fits_nowhere_takes_no_limit_from_others() {
    let pods = vec![pod("a", "3", json!({})), pod("b", "2", json!({}))];
    let input = snapshot(vec![pool("p", json!({"limits": {"cpu": "4"}}))], pods);
    assert_eq!(planned(&solve(&input)), ["a"]);
    let results = solve_holding(&input, &held(&["a"]), &|_| true);
    assert_eq!((planned(&results), results.errors.len()), (vec!["b"], 0));
}

#[test]
fn a_held_pod_is_in_no_list_where_others_take_its_room() {
    // Without the one that is left out, the pod beside it comes first.
    let near = json!({"affinity": {"podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{
            "topologyKey": "kubernetes.io/hostname", "labelSelector": {}}]}}});
    for count in 1..6 {
        let pods = (0..count).map(|i| pod(&format!("p{i}"), "1", near.clone())).collect();
        let input = snapshot(vec![pool("p", json!({}))], pods);
        let results = solve_holding(&input, &held(&["p0", "p2"]), &|_| true);
        assert!(!planned(&results).iter().any(|name| ["p0", "p2"].contains(name)));
        assert!(results.errors.is_empty());
    }
}
