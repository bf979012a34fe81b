//! What no decision may do, on random clusters, by a model that counts for itself: budgets, pods and
//! nodes that must stay, PodDisruptionBudgets, limits, and what replacements cost.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const POOLS: [&str; 2] = ["p", "q"];
const KINDS: [(&str, i64, f64); 3] = [("small", 2, 0.1), ("medium", 4, 0.2), ("large", 16, 0.8)];
const BUDGETS: [&str; 5] = ["0", "1", "2", "40%", "100%"];

#[derive(Clone, Debug)]
struct PodSketch {
    half_cores: i64,
    app: usize,
    protected: bool,
}

#[derive(Clone, Debug)]
struct NodeSketch {
    pool: usize,
    kind: usize,
    drifted: bool,
    consolidatable: bool,
    leaving: bool,
    protected: bool,
    /// Its drain is bounded, so that drift need not wait for pods.
    bounded: bool,
    pods: Vec<PodSketch>,
}

#[derive(Clone, Debug)]
struct Sketch {
    nodes: Vec<NodeSketch>,
    budgets: [usize; 2],
    /// Cores.
    limits: [Option<i64>; 2],
    /// Per app: no budget, one that allows something, one that allows nothing.
    pdbs: [u8; 3],
}

fn pods() -> impl Strategy<Value = Vec<PodSketch>> {
    let pod = (1_i64..5, 0_usize..3, 0_u8..12).prop_map(|(half_cores, app, protected)| PodSketch {
        half_cores,
        app,
        protected: protected == 0,
    });
    proptest::collection::vec(pod, 0..5)
}

fn nodes() -> impl Strategy<Value = NodeSketch> {
    (0_usize..2, 0_usize..3, 0_u32..64, pods()).prop_map(|(pool, kind, bits, pods)| NodeSketch {
        pool,
        kind,
        drifted: bits & 1 == 0,
        consolidatable: bits & 6 != 0,
        leaving: bits & 24 == 0,
        protected: bits % 13 == 0,
        bounded: bits & 32 == 0,
        pods,
    })
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let limit = || proptest::option::of(0_i64..60);
    let all = (
        proptest::collection::vec(nodes(), 1..9),
        [0_usize..5, 0..5],
        [limit(), limit()],
        [0_u8..3, 0..3, 0..3],
    );
    all.prop_map(|(nodes, budgets, limits, pdbs)| Sketch { nodes, budgets, limits, pdbs })
}

fn built(sketch: &NodeSketch, name: &str) -> StateNode {
    let (kind, cpu, _) = KINDS[sketch.kind];
    let mut is = Vec::new();
    if sketch.drifted {
        is.push("Drifted");
    }
    if sketch.consolidatable {
        is.push("Consolidatable");
    }
    let mut state = node(name, kind, &cpu.to_string(), &is, &[]);
    let pool = POOLS[sketch.pool].to_owned();
    let mut joined = (**state.node.as_ref().unwrap()).clone();
    joined.metadata.labels.get_or_insert_default().insert(labels::NODEPOOL.into(), pool.clone());
    if sketch.protected {
        let marks = joined.metadata.annotations.get_or_insert_default();
        marks.insert("karpenter.sh/do-not-disrupt".to_owned(), "true".to_owned());
    }
    state.node = Some(Arc::new(joined));
    let mut claim = (**state.node_claim.as_ref().unwrap()).clone();
    claim.metadata.labels.get_or_insert_default().insert(labels::NODEPOOL.into(), pool);
    if sketch.bounded {
        let grace = serde_json::from_value(json!("10m")).unwrap();
        claim.spec.termination_grace_period = Some(grace);
    }
    state.node_claim = Some(Arc::new(claim));
    state.marked_for_deletion = sketch.leaving;
    state.pods = sketch.pods.iter().enumerate().map(|(at, p)| bound(p, name, at)).collect();
    state
}

fn bound(sketch: &PodSketch, node: &str, at: usize) -> Arc<PodInfo> {
    let name = format!("{node}-{at}");
    let marks =
        if sketch.protected { json!({"karpenter.sh/do-not-disrupt": "true"}) } else { json!({}) };
    let pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name,
            "labels": {"app": sketch.app.to_string()}, "annotations": marks},
        "spec": {"nodeName": node, "containers": [{"name": "c", "resources":
            {"requests": {"cpu": format!("{}m", 500 * sketch.half_cores)}}}]},
        "status": {"phase": "Running"}});
    Arc::new(PodInfo::from_pod(&serde_json::from_value(pod).unwrap()))
}

fn pdbs(sketch: &Sketch) -> Vec<Arc<PodDisruptionBudget>> {
    let allowing = sketch.pdbs.iter().enumerate().filter(|(_, kind)| **kind > 0);
    let pdb = |(app, kind): (usize, &u8)| {
        let allowed = i32::from(*kind == 1);
        let object = json!({"metadata": {"name": app.to_string(), "namespace": "n"},
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": app.to_string()}}},
            "status": {"disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 0,
                "expectedPods": 1}});
        Arc::new(serde_json::from_value(object).unwrap())
    };
    allowing.map(pdb).collect()
}

fn cluster(sketch: &Sketch) -> Snapshot {
    let mut all = snapshot(json!({}), Vec::new());
    let types = Arc::clone(&all.node_pools[0].instance_types);
    all.node_pools = (0..2)
        .map(|at| {
            let mut spec = json!({"disruption": {
                "consolidateAfter": "0s", "budgets": [{"nodes": BUDGETS[sketch.budgets[at]]}]}});
            if let Some(limit) = sketch.limits[at] {
                spec["limits"] = json!({"cpu": limit.to_string()});
            }
            let spec = serde_json::from_value(spec).unwrap();
            let node_pool = Arc::new(crate::api::v1::NodePool::new(POOLS[at], spec));
            NodePoolInput { node_pool, instance_types: Arc::clone(&types) }
        })
        .collect();
    all.nodes =
        sketch.nodes.iter().enumerate().map(|(at, n)| built(n, &format!("n{at}"))).collect();
    all
}

/// The model: what holds for the commands of one decision.
struct Model<'a>(&'a Sketch);

impl Model<'_> {
    fn of(&self, name: &str) -> &NodeSketch {
        &self.0.nodes[name[1..].parse::<usize>().unwrap()]
    }

    /// How many more nodes of a pool may go.
    fn allowance(&self, pool: usize) -> usize {
        let own = || self.0.nodes.iter().filter(|n| n.pool == pool);
        let budget = BUDGETS[self.0.budgets[pool]];
        let allowed = match budget.strip_suffix('%') {
            Some(share) => (share.parse::<usize>().unwrap() * own().count()).div_ceil(100),
            None => budget.parse().unwrap(),
        };
        allowed.saturating_sub(own().filter(|n| n.leaving).count())
    }

    fn may_go(&self, node: &NodeSketch, method: Method) -> bool {
        let waits = !(node.bounded && method.is_eventual());
        let blocked = |pod: &PodSketch| pod.protected || self.0.pdbs[pod.app] == 2;
        let asked = match method {
            Method::Drift => node.drifted,
            _ => node.consolidatable,
        };
        let held = node.leaving || node.protected || (waits && node.pods.iter().any(blocked));
        asked && !held
    }

    /// Cores of a pool once these nodes are gone.
    fn cores(&self, pool: usize, gone: &[&str]) -> i64 {
        let stays = |(at, node): &(usize, &NodeSketch)| {
            node.pool == pool && !node.leaving && !gone.contains(&format!("n{at}").as_str())
        };
        let left = self.0.nodes.iter().enumerate().filter(stays);
        left.map(|(_, node)| KINDS[node.kind].1).sum()
    }

    fn within_limit(&self, pool: usize, gone: &[&str], more: i64) -> Result<(), TestCaseError> {
        if let Some(limit) = self.0.limits[pool] {
            let whole = self.cores(pool, gone) + more;
            prop_assert!(whole <= limit, "{whole} cores, the limit is {limit}");
        }
        Ok(())
    }

    fn check(&self, decision: &Decision, method: Method) -> Result<(), TestCaseError> {
        let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
        let mut all_gone: Vec<&str> = Vec::new();
        let mut all_more: BTreeMap<usize, i64> = BTreeMap::new();
        for command in &decision.commands {
            let gone: Vec<&str> = command.candidates.iter().map(|c| c.node.name()).collect();
            for name in &gone {
                let node = self.of(name);
                *taken.entry(node.pool).or_default() += 1;
                prop_assert!(self.may_go(node, method), "{method:?} takes {name}: {node:?}");
                if method == Method::Emptiness {
                    prop_assert!(node.pods.is_empty());
                }
            }
            let before: f64 = gone.iter().map(|n| KINDS[self.of(n).kind].2).sum();
            let mut after: BTreeMap<usize, i64> = BTreeMap::new();
            for replacement in &command.replacements {
                let pool = replacement.node_pool.metadata.name.as_deref();
                let pool = POOLS.iter().position(|p| Some(*p) == pool).unwrap();
                let largest = replacement.instance_types.iter();
                let cpu = |t: &Arc<InstanceType>| t.capacity.get(&Name::Cpu) / 1000;
                *after.entry(pool).or_default() += largest.map(cpu).max().unwrap();
                let dearest = replacement.instance_types.iter().map(|t| t.offerings[0].price);
                let dearest = dearest.fold(0.0, f64::max);
                if method != Method::Drift {
                    prop_assert!(dearest < before - 1e-9, "{dearest} for {before}");
                }
            }
            for (pool, more) in after {
                *all_more.entry(pool).or_default() += more;
                self.within_limit(pool, &gone, more)?;
            }
            if method != Method::Drift {
                prop_assert!(command.savings > 0.0);
            }
            for name in gone {
                prop_assert!(!all_gone.contains(&name), "two commands take {name}");
                all_gone.push(name);
            }
        }
        for (pool, more) in all_more {
            self.within_limit(pool, &all_gone, more)?;
        }
        for (pool, count) in taken {
            let most = self.allowance(pool);
            prop_assert!(count <= most, "{count} of {}, {most} may go", POOLS[pool]);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_decision_goes_beyond_what_pools_and_pods_allow(sketch in sketch()) {
        let (snapshot, pdbs) = (cluster(&sketch), pdbs(&sketch));
        let given = Given { pdbs: &pdbs, ..Given::new(&snapshot) };
        let model = Model(&sketch);
        for method in [Method::Emptiness, Method::Drift, Method::MultiNode, Method::SingleNode] {
            model.check(&given.run(method), method)?;
        }
    }

    /// Nothing changed, so that all commands of a pass may be carried out, not only the first.
    #[test]
    fn commands_that_were_found_together_hold_together(sketch in sketch()) {
        let (snapshot, pdbs) = (cluster(&sketch), pdbs(&sketch));
        let given = Given { pdbs: &pdbs, ..Given::new(&snapshot) };
        for method in [Method::MultiNode, Method::SingleNode] {
            let commands = given.run(method).commands;
            let wanted: Vec<Vec<String>> = commands.iter().map(Command::claim_names).collect();
            let checked = given.with(|input| all_still_valid(input, commands));
            for (names, outcome) in wanted.into_iter().zip(checked) {
                prop_assert_eq!(outcome.map(|c| c.claim_names()).map_err(|e| e.0), Ok(names));
            }
        }
    }

    /// The other way round: what nothing stands against goes.
    #[test]
    fn empty_nodes_go_as_far_as_budgets_allow(sketch in sketch()) {
        let (snapshot, pdbs) = (cluster(&sketch), pdbs(&sketch));
        let decision = Given { pdbs: &pdbs, ..Given::new(&snapshot) }.run(Method::Emptiness);
        let model = Model(&sketch);
        for (pool, name) in POOLS.iter().enumerate() {
            let may = sketch.nodes.iter().filter(|n| {
                n.pool == pool && n.pods.is_empty() && model.may_go(n, Method::Emptiness)
            });
            let gone = decision.commands.iter().flat_map(|c| &c.candidates);
            let gone = gone.filter(|c| c.pool_name() == *name).count();
            prop_assert_eq!(gone, may.count().min(model.allowance(pool)));
        }
    }
}
