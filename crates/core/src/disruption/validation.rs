//! Whether a command that was found a while ago may still be carried out.

use std::collections::BTreeSet;

use super::methods::{Pass, placed, prepare};
use super::pdb::Limits;
use super::simulation::Launching;
use super::{Abandoned, Candidate, Command, Input, Method, Rejection, candidate};
use crate::scheduling::node::StateNode;
use crate::scheduling::results::PlannedClaim;
use crate::scheduling::snapshot::NodePoolInput;

/// Looks again at commands that were found together. Each stands for itself: what is wrong with one
/// keeps none of the others back.
#[must_use]
pub fn all_still_valid(
    input: &Input<'_>,
    commands: Vec<Command>,
) -> Vec<Result<Command, Box<(Abandoned, Command)>>> {
    let Some(method) = commands.first().map(|c| c.method) else { return Vec::new() };
    let limits = Limits::new(input.pdbs);
    let go_on = || true;
    let (mut pass, found) = prepare(input, &limits, method, &go_on);
    let several = commands.len() > 1;
    if several && hold_as_one(&mut pass, &found, &commands) {
        return commands.into_iter().map(Ok).collect();
    }
    // Nodes that pods of commands before are expected on; unknown once that cannot be known.
    let mut expecting: Option<BTreeSet<String>> = Some(BTreeSet::new());
    let mut outcomes = Vec::with_capacity(commands.len());
    for command in commands {
        let free =
            |c: &Candidate| expecting.as_ref().is_some_and(|nodes| !nodes.contains(c.node.name()));
        let checked = if command.candidates.iter().all(free) {
            check(&mut pass, &found, &command)
        } else {
            Err(Abandoned::OtherResults)
        };
        if let (true, Ok(command)) = (several, &checked) {
            let nodes = pass.carry_out(command);
            expecting =
                expecting.zip(nodes).map(|(all, nodes)| all.into_iter().chain(nodes).collect());
        }
        outcomes.push(checked.map_err(|why| Box::new((why, command))));
    }
    outcomes
}

/// Whether commands hold unchanged when all are carried out, as they were found.
fn hold_as_one(pass: &mut Pass<'_>, found: &[Candidate], commands: &[Command]) -> bool {
    let wanted: BTreeSet<&str> =
        commands.iter().flat_map(|c| &c.candidates).map(Candidate::claim_name).collect();
    let set: Vec<&Candidate> = found.iter().filter(|c| wanted.contains(c.claim_name())).collect();
    let mut budgets = pass.budgets.clone();
    if set.len() < wanted.len() || !set.iter().all(|c| budgets.take(c.pool_name())) {
        return false;
    }
    let replacements: Vec<&PlannedClaim> = commands.iter().flat_map(|c| &c.replacements).collect();
    placed(pass.simulate(&set, true))
        .is_ok_and(|simulated| covers(&replacements, &simulated.results.new_claims))
}

/// Looks at a command again.
///
/// A command without replacements may shrink to what still can go: empty nodes to those that are
/// still empty, several nodes to those that are still candidates.
///
/// # Errors
/// With the reason why it must not be carried out.
pub fn still_valid(input: &Input<'_>, command: &Command) -> Result<Command, Abandoned> {
    let limits = Limits::new(input.pdbs);
    let go_on = || true;
    let (mut pass, found) = prepare(input, &limits, command.method, &go_on);
    check(&mut pass, &found, command)
}

fn check(
    pass: &mut Pass<'_>,
    found: &[Candidate],
    command: &Command,
) -> Result<Command, Abandoned> {
    let mut now: Vec<Candidate> = found
        .iter()
        .filter(|c| command.candidates.iter().any(|old| old.claim_name() == c.claim_name()))
        .cloned()
        .collect();
    let gone = command.candidates.len() - now.len().min(command.candidates.len());
    let may_shrink = command.replacements.is_empty() && command.method != Method::SingleNode;
    if now.is_empty() || (gone > 0 && !may_shrink) {
        return Err(Abandoned::Churn { gone });
    }
    let mut over = None;
    now.retain(|c| {
        let room = pass.budgets.take(c.pool_name());
        if !room {
            over = Some(c.pool_name().to_owned());
        }
        room
    });
    if let Some(pool) = over
        && (now.is_empty() || !may_shrink)
    {
        return Err(Abandoned::Budget { pool });
    }
    if command.method != Method::Emptiness {
        simulates_alike(pass, &now.iter().collect::<Vec<_>>(), command)?;
    }
    if now.len() == command.candidates.len() {
        return Ok(command.clone());
    }
    let smaller = Command::delete(command.method, now);
    Ok(Command { nominated: command.nominated.clone(), scores: command.scores.clone(), ..smaller })
}

/// Whether scheduling still makes of the candidates what the command says.
fn simulates_alike(
    pass: &mut Pass<'_>,
    set: &[&Candidate],
    command: &Command,
) -> Result<(), Abandoned> {
    let wanted: Vec<&PlannedClaim> = command.replacements.iter().collect();
    let simulated = placed(pass.simulate(set, true)).map_err(|rejection| match rejection {
        Rejection::Stranded(pods) => Abandoned::Stranded(pods),
        _ => Abandoned::OtherResults,
    })?;
    if covers(&wanted, &simulated.results.new_claims) {
        return Ok(());
    }
    // The command may have been found with the nodes of one pool only, or with several nodes.
    let own: Vec<Option<&str>> =
        wanted.iter().map(|r| r.node_pool.metadata.name.as_deref()).collect();
    if own.is_empty() {
        return Err(Abandoned::OtherResults);
    }
    let all = &pass.input.snapshot.node_pools;
    let of_own = |p: &&NodePoolInput| own.contains(&p.node_pool.metadata.name.as_deref());
    let only: Vec<NodePoolInput> = all.iter().filter(of_own).cloned().collect();
    let several = wanted.len() > 1;
    let pools = if several { all } else { &only };
    let again = placed(pass.simulate_in(set, Launching { pools, several, strict: false }));
    match again {
        Ok(simulated) if covers(&wanted, &simulated.results.new_claims) => Ok(()),
        _ => Err(Abandoned::OtherResults),
    }
}

/// Whether the replacements launch nothing that the plan does not.
fn covers(replacements: &[&PlannedClaim], planned: &[PlannedClaim]) -> bool {
    let mut left: Vec<&PlannedClaim> = planned.iter().collect();
    replacements.iter().all(|old| {
        let within = |new: &&PlannedClaim| {
            old.node_pool.metadata.name == new.node_pool.metadata.name
                && old
                    .instance_types
                    .iter()
                    .all(|t| new.instance_types.iter().any(|other| other.name == t.name))
        };
        match left.iter().position(within) {
            Some(at) => {
                left.swap_remove(at);
                true
            }
            None => false,
        }
    }) && left.is_empty()
}

/// Whether pods arrived or became protected on a candidate since the command was found. Asked once
/// more after the taint, when no pod can arrive any more.
///
/// # Errors
/// With what stands against the node now.
pub fn undisturbed(
    input: &Input<'_>,
    candidate: &Candidate,
    method: Method,
    now: &StateNode,
) -> Result<(), Abandoned> {
    let limits = Limits::new(input.pdbs);
    let changed =
        |why| Abandoned::PodAppeared { node: candidate.node.name().to_owned(), why: Box::new(why) };
    let bounded =
        now.node_claim.as_ref().is_some_and(|c| c.spec.termination_grace_period.is_some());
    if method != Method::Repair && !(bounded && method.is_eventual()) {
        candidate::pods_allow(input, &limits, now).map_err(changed)?;
    }
    if method == Method::Emptiness && candidate::disruption_cost(&now.pods) > 1.0 {
        return Err(changed(Rejection::NotEmpty));
    }
    // Pods that came after the decision have no place in it.
    let known = |key| candidate.node.pods.iter().any(|p| p.key == key);
    if matches!(method, Method::MultiNode | Method::SingleNode)
        && now.pods.iter().any(|p| p.is_reschedulable() && !known(p.key.clone()))
    {
        return Err(changed(Rejection::NotEmpty));
    }
    Ok(())
}
