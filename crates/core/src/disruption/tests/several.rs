//! Several commands of one pass: what they leave each other, and how they are looked at again.

use super::*;

fn open() -> Value {
    json!({"budgets": [{"nodes": "100%"}]})
}

fn valid(snapshot: &Snapshot, commands: Vec<Command>) -> Vec<Result<usize, Abandoned>> {
    let checked = Given::new(snapshot).with(|input| all_still_valid(input, commands));
    checked.into_iter().map(|c| c.map(|c| c.candidates.len()).map_err(|e| e.0)).collect()
}

#[test]
fn one_pass_replaces_every_node_that_a_cheaper_one_could_be() {
    let mut snap = snapshot(open(), Vec::new());
    // Not larger than one pod, so that none of them is a help to another.
    snap.node_pools[0].instance_types = [kind("medium", 4, 0.2), kind("large", 4, 0.8)].into();
    snap.nodes = (0..3).map(|i| node(&format!("n{i}"), "large", "4", ALL, &["3500m"])).collect();
    let decision = run(&snap, Method::SingleNode);
    assert_eq!(decision.commands.len(), 3, "{decision:?}");
    assert!(decision.commands.iter().all(|c| c.replacements.len() == 1 && c.savings > 0.5));
    assert_eq!(valid(&snap, decision.commands), [Ok(1), Ok(1), Ok(1)]);
}

#[test]
fn of_nodes_that_could_go_to_each_other_only_one_goes() {
    let nodes = ["a", "b"].map(|name| node(name, "medium", "4", ALL, &["1900m"])).into();
    let decision = run(&snapshot(open(), nodes), Method::SingleNode);
    assert_eq!(decision.commands.len(), 1);
    assert!(decision.commands[0].replacements.is_empty(), "it is not replaced");
}

#[test]
fn one_pass_stays_within_the_budget() {
    let mut snap = snapshot(json!({"budgets": [{"nodes": "2"}]}), Vec::new());
    snap.node_pools[0].instance_types = [kind("medium", 4, 0.2), kind("large", 4, 0.8)].into();
    snap.nodes = (0..4).map(|i| node(&format!("n{i}"), "large", "4", ALL, &["3500m"])).collect();
    let decision = run(&snap, Method::SingleNode);
    assert_eq!(decision.commands.len(), 2);
    assert!(decision.constrained);
}

#[test]
fn a_command_that_does_not_hold_any_more_keeps_no_other_back() {
    let mut snap = snapshot(open(), Vec::new());
    snap.node_pools[0].instance_types = [kind("medium", 4, 0.2), kind("large", 4, 0.8)].into();
    let of = |kept: usize| {
        let is = |i: usize| if i == kept { &[] } else { ALL };
        (0..3).map(|i| node(&format!("n{i}"), "large", "4", is(i), &["3500m"])).collect()
    };
    snap.nodes = of(9);
    let commands = run(&snap, Method::SingleNode).commands;
    assert_eq!(commands.len(), 3);
    let second = commands.iter().position(|c| c.candidates[0].node.name() == "n1").unwrap();
    snap.nodes = of(1);
    let outcome = valid(&snap, commands);
    for (at, checked) in outcome.into_iter().enumerate() {
        let expected = if at == second { Err(Abandoned::Churn { gone: 1 }) } else { Ok(1) };
        assert_eq!(checked, expected);
    }
}

#[test]
fn many_nodes_go_by_commands_of_a_hundred_that_hold_together() {
    let nodes: Vec<StateNode> =
        (0..260).map(|i| node(&format!("n{i:03}"), "large", "16", ALL, &["100m"])).collect();
    let snap = snapshot(open(), nodes);
    let decision = run(&snap, Method::MultiNode);
    let sizes: Vec<usize> = decision.commands.iter().map(|c| c.candidates.len()).collect();
    assert!(sizes.len() > 2 && sizes.iter().all(|n| *n <= 100), "{sizes:?}");
    let all: usize = sizes.iter().sum();
    assert!(all >= 240, "{sizes:?}");
    let again: usize = valid(&snap, decision.commands).into_iter().map(Result::unwrap).sum();
    assert_eq!(again, all);
}

/// A set whose replacement would be of the kind of one of them: that one stays, and the others go.
#[test]
fn a_node_stays_rather_than_be_replaced_with_its_like() {
    let nodes = vec![
        node("a", "large", "16", ALL, &["3", "3"]),
        node("b", "large", "16", ALL, &["3", "3"]),
        node("c", "large", "16", ALL, &["2", "1"]),
    ];
    let decision = run(&snapshot(open(), nodes), Method::MultiNode);
    let command = &decision.commands[0];
    assert_eq!((command.candidates.len(), command.replacements.len()), (2, 0), "{decision:?}");
}
