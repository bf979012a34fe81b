//! What the methods share: candidates, budgets, and the frame in which each searches.

use super::budget::Budgets;
use super::candidate::{self, Pools};
use super::pdb::Limits;
use super::rejection::Stranded;
use super::score::Balance;
use super::simulation::{self, Ground, Launching, Simulated};
use super::{Candidate, Command, Decision, Input, Method, Rejection};
use super::{drift, emptiness, multi_node, repair, single_node, static_drift};

/// One method.
pub(super) trait Search: Sync {
    /// Whether the method is about the node.
    fn fit(&self, input: &Input<'_>, candidate: &Candidate) -> Result<(), Rejection>;

    /// Looks for commands among the candidates, and notes why the others stay.
    fn search(&self, pass: &mut Pass<'_>, candidates: Vec<Candidate>);
}

fn search_of(method: Method) -> &'static dyn Search {
    match method {
        Method::Repair => &repair::Repairing,
        Method::Emptiness => &emptiness::Emptiness,
        Method::StaticDrift => &static_drift::StaticDrift,
        Method::Drift => &drift::Drift,
        Method::MultiNode => &multi_node::MultiNode,
        Method::SingleNode => &single_node::SingleNode,
    }
}

/// What a simulation takes whatever it places, in pods: the plan is read, and its nodes are written out.
const WORK_PER_SIMULATION: usize = 500;

/// What a method works with.
pub(super) struct Pass<'a> {
    pub(super) input: &'a Input<'a>,
    pub(super) limits: &'a Limits,
    pub(super) budgets: Budgets,
    pub(super) balance: Balance,
    pub(super) decision: Decision,
    /// What the simulations took so far, in pods that were placed.
    pub(super) work: usize,
    ground: Option<Ground>,
    go_on: &'a dyn Fn() -> bool,
}

impl Pass<'_> {
    /// False once time has run out.
    pub(super) fn go_on(&mut self) -> bool {
        let go_on = !self.decision.timed_out && (self.go_on)();
        self.decision.timed_out |= !go_on;
        go_on
    }

    pub(super) fn reject(&mut self, candidate: &Candidate, rejection: Rejection) {
        self.decision.reject(candidate.node.name(), rejection);
    }

    /// Notes that the budget of the candidate's pool lets no more nodes go.
    pub(super) fn over_budget(&mut self, candidate: &Candidate) {
        self.decision.constrained = true;
        let allowance = self.budgets.of(candidate.pool_name());
        self.reject(candidate, Rejection::BudgetUsedUp(allowance));
    }

    /// What scheduling makes of the cluster without the candidates.
    pub(super) fn simulate(&mut self, candidates: &[&Candidate], consolidating: bool) -> Simulated {
        self.count(candidates);
        let input = self.input;
        simulation::without(input, self.ground(), candidates, consolidating)
    }

    /// The same for consolidation, with nodes launched in another way.
    pub(super) fn simulate_in(
        &mut self,
        candidates: &[&Candidate],
        launching: Launching<'_>,
    ) -> Simulated {
        self.count(candidates);
        let input = self.input;
        simulation::without_but(input, self.ground(), candidates, true, launching)
    }

    fn count(&mut self, candidates: &[&Candidate]) {
        self.decision.simulations += 1;
        self.work += WORK_PER_SIMULATION + candidates.iter().map(|c| c.pods.len()).sum::<usize>();
    }

    /// Goes on with the cluster that a command leaves. Returns the nodes that pods are expected on;
    /// nothing where that cannot be known, so that no further command can be looked for.
    pub(super) fn carry_out(&mut self, command: &Command) -> Option<Vec<String>> {
        let candidates: Vec<&Candidate> = command.candidates.iter().collect();
        let simulated = placed(self.simulate(&candidates, true)).ok()?;
        let (input, results) = (self.input, &simulated.results);
        // A command that was found in another way is not what this says.
        (results.new_claims.len() == command.replacements.len()
            && self.ground().carry_out(input, &candidates, results))
        .then(|| simulated.nominated())
    }

    /// What all simulations of the pass share; prepared with the first of them.
    pub(super) fn ground(&mut self) -> &mut Ground {
        let (input, limits) = (self.input, self.limits);
        self.ground.get_or_insert_with(|| Ground::new(input, limits))
    }
}

/// A simulation in which every pod has a place.
pub(super) fn placed(simulated: Simulated) -> Result<Simulated, Rejection> {
    if simulated.stranded.is_empty() {
        return Ok(simulated);
    }
    let mut stranded: Vec<Stranded> = simulated.stranded;
    stranded.sort_by(|a, b| a.pod.cmp(&b.pod));
    Err(Rejection::Stranded(stranded))
}

/// One look at a cluster: what the methods that are asked one after the other share. Nothing is worked
/// out before a method needs it.
#[derive(Default)]
pub struct Prepared {
    limits: Option<Limits>,
    ground: Option<Ground>,
}

impl Prepared {
    /// Looks for commands by one method; stops early, with the best found, once `go_on` says no. Every
    /// method is asked with the same input. After commands none is asked: they change the cluster.
    #[must_use]
    pub fn decide(
        &mut self,
        input: &Input<'_>,
        method: Method,
        go_on: &dyn Fn() -> bool,
    ) -> Decision {
        let limits = self.limits.get_or_insert_with(|| Limits::new(input.pdbs));
        let (mut pass, candidates) = prepare(input, limits, method, go_on);
        pass.ground = self.ground.take();
        if !candidates.is_empty() {
            search_of(method).search(&mut pass, candidates);
        }
        let Pass { mut decision, ground, .. } = pass;
        self.ground = ground;
        decision.close(match method {
            Method::MultiNode => Rejection::NoSet,
            _ => Rejection::OtherFirst,
        });
        decision
    }

    /// How often a world was prepared for the methods' simulations.
    #[must_use]
    pub fn worlds(&self) -> usize {
        self.ground.as_ref().map_or(0, Ground::prepared)
    }
}

/// Looks for commands by one method, as [`Prepared`] does.
#[must_use]
pub fn decide(input: &Input<'_>, method: Method, go_on: &dyn Fn() -> bool) -> Decision {
    Prepared::default().decide(input, method, go_on)
}

/// The candidates that the method is about, what saves most for its disruption first.
pub(super) fn prepare<'a>(
    input: &'a Input<'a>,
    limits: &'a Limits,
    method: Method,
    go_on: &'a dyn Fn() -> bool,
) -> (Pass<'a>, Vec<Candidate>) {
    let pools = Pools::new(input.pools);
    let mut decision = Decision::default();
    let all = candidate::collect(input, &pools, limits, method, &mut decision);
    let budgets = Budgets::new(input.pools, &input.snapshot.nodes, method.reason(), input.now);
    decision.budgets = budgets.clone();
    let balance = Balance::new(input, &pools);
    let search = search_of(method);
    let mut candidates = Vec::new();
    for candidate in all {
        let score = balance.scores(&[&candidate], candidate.price).first().map(|s| s.value);
        decision.figures(&candidate, score);
        match search.fit(input, &candidate) {
            Ok(()) => candidates.push(candidate),
            Err(rejection) => decision.reject(candidate.node.name(), rejection),
        }
    }
    candidates.sort_by(|a, b| {
        b.savings_ratio()
            .total_cmp(&a.savings_ratio())
            .then_with(|| a.node.name().cmp(b.node.name()))
    });
    decision.eligible = candidates.len();
    (Pass { input, limits, budgets, balance, decision, work: 0, ground: None, go_on }, candidates)
}
