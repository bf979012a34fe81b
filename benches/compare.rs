//! `make compare`: random scenarios through both schedulers, each difference put into a class.
//!
//! Exits with 1 when some scenario costs more than with the peer and keeps no more for it, leaves
//! more pods without a place, or has a result that breaks a rule; such scenarios are kept with both results beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use serde_json::Value;

#[path = "../tests/reference/reference.rs"]
mod reference;

use reference::check::World;
use reference::model::Document;
use reference::outcome::Outcome;
use reference::standing::Standing;
use reference::{fitting, random};

const USAGE: &str = "\
usage: compare --karpenter FILE --peer FILE --work DIR [--count N] [--seed N] [--repeat N]
       compare --check SCENARIO RESULT
  --karpenter  the binary to compare
  --peer    the program built from benches/peer
  --work    folder for scenarios and results
  --count   how many scenarios (500)
  --seed    the first scenario's seed (0)
  --repeat  the peer's runs a scenario, of which the best counts (3)
  --check   only tell whether a result of either scheduler is valid";

/// How our result stands to the peer's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Class {
    Same,
    Cheaper,
    FewerUnschedulable,
    Dearer,
    MoreUnschedulable,
    /// Dearer, with more pods in heavier NodePools, or with as many there and more preferences met.
    KeepsMore,
    /// Dearer or more unschedulable, against a result that breaks a rule.
    PeerBreaksRule,
}

impl Class {
    const ALL: [(Self, &str); 7] = [
        (Self::Same, "same price"),
        (Self::Cheaper, "cheaper"),
        (Self::FewerUnschedulable, "fewer unschedulable"),
        (Self::Dearer, "dearer"),
        (Self::MoreUnschedulable, "more unschedulable"),
        (Self::KeepsMore, "dearer, for the weights of NodePools or for preferences"),
        (Self::PeerBreaksRule, "dearer or more unschedulable than a result that breaks a rule"),
    ];

    fn of(ours: &Outcome, peers: &Outcome) -> Self {
        match ours.unschedulable.len().cmp(&peers.unschedulable.len()) {
            std::cmp::Ordering::Less => Self::FewerUnschedulable,
            std::cmp::Ordering::Greater => Self::MoreUnschedulable,
            std::cmp::Ordering::Equal => {
                let (us, them) = (ours.total_price, peers.total_price);
                if us > them + 1e-6 {
                    Self::Dearer
                } else if us < them - 1e-6 {
                    Self::Cheaper
                } else {
                    Self::Same
                }
            }
        }
    }

    fn bad(self) -> bool {
        matches!(self, Self::Dearer | Self::MoreUnschedulable)
    }
}

struct Options {
    karpenter: PathBuf,
    peer: PathBuf,
    work: PathBuf,
    count: u64,
    seed: u64,
    repeat: u64,
}

impl Options {
    fn parse(args: &[String]) -> Option<Self> {
        let mut options = Self {
            karpenter: PathBuf::new(),
            peer: PathBuf::new(),
            work: PathBuf::new(),
            count: 500,
            seed: 0,
            repeat: 3,
        };
        let mut rest = args.iter();
        while let Some(name) = rest.next() {
            // Cargo adds this one to whatever a bench gets.
            if name == "--bench" {
                continue;
            }
            let value = rest.next()?;
            match name.as_str() {
                "--karpenter" => options.karpenter = value.into(),
                "--peer" => options.peer = value.into(),
                "--work" => options.work = value.into(),
                "--count" => options.count = value.parse().ok()?,
                "--seed" => options.seed = value.parse().ok()?,
                "--repeat" => options.repeat = value.parse().ok()?,
                _ => return None,
            }
        }
        let paths = [&options.karpenter, &options.peer, &options.work];
        paths.iter().all(|p| !p.as_os_str().is_empty()).then_some(options)
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let [flag, scenario, result] = args.as_slice()
        && flag == "--check"
    {
        return check(Path::new(scenario), Path::new(result));
    }
    let Some(options) = Options::parse(&args) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match compare(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::from(2)
        }
    }
}

fn read(path: &Path) -> std::io::Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// Rules that a result breaks.
fn broken(doc: &Document, outcome: &Outcome) -> Vec<String> {
    World::new(doc, outcome).problems()
}

/// Whether ours is better by what comes before the price.
fn keeps_more(doc: &Document, ours: &Outcome, peers: &Outcome) -> bool {
    Standing::of(&World::new(doc, ours)) < Standing::of(&World::new(doc, peers))
}

/// Everything wrong with a result: broken rules, and left-over pods that would fit.
fn problems(doc: &Document, outcome: &Outcome) -> Vec<String> {
    let world = World::new(doc, outcome);
    let mut found = world.problems();
    found.extend(fitting(&world));
    found
}

fn check(scenario: &Path, result: &Path) -> ExitCode {
    let (scenario, result) = match (read(scenario), read(result)) {
        (Ok(scenario), Ok(result)) => (scenario, result),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("compare: {error}");
            return ExitCode::from(2);
        }
    };
    let found = problems(&Document::read(scenario), &Outcome::read(result));
    found.iter().for_each(|problem| println!("{problem}"));
    if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What became of one scenario.
struct Case {
    seed: u64,
    class: Class,
    invalid: Vec<String>,
    ours: f64,
    peers: f64,
    nodes: (usize, usize),
}

fn compare(options: &Options) -> std::io::Result<bool> {
    let scenarios = options.work.join("scenarios");
    let answers = options.work.join("peer");
    let kept = options.work.join("kept");
    for folder in [&scenarios, &answers, &kept] {
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        std::fs::create_dir_all(folder)?;
    }
    let seeds: Vec<u64> = (options.seed..options.seed + options.count).collect();
    let file = |seed: &u64| scenarios.join(format!("{seed:05}.json"));
    for seed in &seeds {
        std::fs::write(file(seed), random::scenario(*seed).to_string())?;
    }
    let status = Command::new(&options.peer)
        .arg("-repeat")
        .arg(options.repeat.to_string())
        .arg("-out")
        .arg(&answers)
        .args(seeds.iter().map(file))
        .status()?;
    if !status.success() {
        return Err(std::io::Error::other(format!("the peer ended with {status}")));
    }
    let mut cases = Vec::new();
    for seed in &seeds {
        let scenario = random::scenario(*seed);
        let result = simulate(&options.karpenter, &file(seed))?;
        let theirs = read(&answers.join(format!("{seed:05}.json")))?;
        let (ours, peers) = (Outcome::read(result.clone()), Outcome::read(theirs));
        let document = Document::read(scenario);
        let mut class = Class::of(&ours, &peers);
        if class.bad() && !broken(&document, &peers).is_empty() {
            class = Class::PeerBreaksRule;
        } else if class == Class::Dearer && keeps_more(&document, &ours, &peers) {
            class = Class::KeepsMore;
        }
        let case = Case {
            seed: *seed,
            class,
            invalid: problems(&document, &ours),
            ours: ours.total_price,
            peers: peers.total_price,
            nodes: (ours.node_claims.len(), peers.node_claims.len()),
        };
        if case.class.bad() || !case.invalid.is_empty() {
            keep(&kept, &file(seed), &answers, &case, &result)?;
        }
        cases.push(case);
    }
    Ok(report(&cases, &kept))
}

/// What the binary prints for a scenario.
fn simulate(karpenter: &Path, scenario: &Path) -> std::io::Result<Value> {
    let done = Command::new(karpenter)
        .args(["simulate", "--output", "json", "--scenario"])
        .arg(scenario)
        .stderr(Stdio::inherit())
        .output()?;
    if !done.status.success() {
        return Err(std::io::Error::other(format!("karpenter simulate: {}", done.status)));
    }
    Ok(serde_json::from_slice(&done.stdout)?)
}

/// Keeps a scenario that shows something wrong, with both results and what is wrong.
fn keep(
    kept: &Path,
    scenario: &Path,
    answers: &Path,
    case: &Case,
    result: &Value,
) -> std::io::Result<()> {
    let seed = case.seed;
    std::fs::copy(scenario, kept.join(format!("{seed:05}.json")))?;
    std::fs::copy(
        answers.join(format!("{seed:05}.json")),
        kept.join(format!("{seed:05}.peer.json")),
    )?;
    std::fs::write(kept.join(format!("{seed:05}.ours.json")), format!("{result:#}"))?;
    let notes = format!(
        "{:?}: {} for us, {} for the peer\n{}\n",
        case.class,
        case.ours,
        case.peers,
        case.invalid.join("\n")
    );
    std::fs::write(kept.join(format!("{seed:05}.txt")), notes)
}

fn report(cases: &[Case], kept: &Path) -> bool {
    let mut classes: BTreeMap<Class, Vec<&Case>> = BTreeMap::new();
    cases.iter().for_each(|c| classes.entry(c.class).or_default().push(c));
    println!("| class | scenarios | ours $/h | peer $/h | our nodes | peer's nodes |");
    println!("|---|---:|---:|---:|---:|---:|");
    for (class, name) in Class::ALL {
        let members = classes.remove(&class).unwrap_or_default();
        // The sum of nothing is -0, which would be printed with its sign.
        let sum = |price: fn(&&Case) -> f64| members.iter().map(price).sum::<f64>() + 0.0;
        let count = |nodes: fn(&&Case) -> usize| members.iter().map(nodes).sum::<usize>();
        println!(
            "| {name} | {} | {:.2} | {:.2} | {} | {} |",
            members.len(),
            sum(|c| c.ours),
            sum(|c| c.peers),
            count(|c| c.nodes.0),
            count(|c| c.nodes.1),
        );
    }
    let invalid: Vec<&Case> = cases.iter().filter(|c| !c.invalid.is_empty()).collect();
    println!("\n{} scenarios, {} with an invalid result of ours", cases.len(), invalid.len());
    for case in cases.iter().filter(|c| c.class.bad() || !c.invalid.is_empty()) {
        let first = case.invalid.first().map(String::as_str).unwrap_or_default();
        println!(
            "seed {}: {:?}, {} to {} $/h {first}",
            case.seed, case.class, case.ours, case.peers
        );
    }
    let good = cases.iter().all(|c| !c.class.bad()) && invalid.is_empty();
    if !good {
        println!("kept in {}", kept.display());
    }
    good
}
