"""`python -m harness bench` runs both schedulers and prints the tables; `generate KIND SIZE...` writes one scenario."""

import argparse
import json
import math
import pathlib
import time

from . import consolidation, replay, run, scenarios, table
from .bound import bound

# Kind and sizes, and whether the peer runs on it by default; BENCH=full runs everything with the peer.
CASES = [
    ("diverse", (1000,), "peer"),
    ("diverse", (5000,), "peer"),
    ("diverse", (10000,), "peer"),
    ("diverse", (50000,), "alone"),
    ("homogeneous", (5000,), "peer"),
    ("realistic", (2000,), "peer"),
    ("realistic", (5000,), "peer"),
    ("large", (2000, 40000, 2000), "peer"),
    ("large", (10000, 200000, 5000), "alone"),
    ("diverse", (100,), "full"),
    ("diverse", (500,), "full"),
    ("diverse", (2000,), "full"),
    ("diverse", (20000,), "full"),
    ("preferences", (1000,), "full"),
    ("homogeneous", (10000, 50), "full"),
    ("realistic", (10000,), "full"),
]


class Result:
    """What both made of one scenario."""

    def __init__(self, path, options, with_peer):
        with open(path, encoding="utf-8") as file:
            scenario = json.load(file)
        self.name, self.pods = scenario["name"], len(scenario["pods"])
        self.ours = run.ours(options.karpenter, path, options.repeat)
        say(f"  ours: {table.seconds(self.ours.seconds)}, {table.mib(self.ours.peak)}, {self.ours.nodes} nodes, {self.ours.price:.3f} $/h")
        self.peer = None
        if with_peer:
            self.peer = run.peers(options.peer, path, options.peer_repeat, options.limit)
            say(f"  peer: {table.seconds(self.peer.seconds)}, {table.mib(self.peer.peak)}, {self.peer.nodes} nodes, {self.peer.price:.3f} $/h")
        self.bound = self.peer_bound = None
        if options.bound and self.pods <= options.bound:
            self.bound = bound(scenario, self.ours.placed_on_new)
            same = self.peer is None or self.peer.placed_on_new == self.ours.placed_on_new
            self.peer_bound = self.bound if same else bound(scenario, self.peer.placed_on_new)
            say(f"  bound: {self.bound}")

    def record(self):
        peer = self.peer.summary() | {"timedOut": self.peer.timed_out, "runs": self.peer.answer["runs"]} if self.peer else None
        return {"scenario": self.name, "pods": self.pods, "ours": self.ours.summary(), "peer": peer,
                "bound": self.bound, "peerBound": self.peer_bound}


def say(text):
    print(text, flush=True)


def bench(options):
    work = pathlib.Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    results, start = [], time.monotonic()
    for kind, sizes, when in CASES:
        name = f"{kind}-{sizes[0]}"
        wanted = options.only is None or name in options.only
        if not wanted or (when == "full" and not options.full and not options.only):
            continue
        say(f"{name} ({time.monotonic() - start:.0f} s so far)")
        path = work / f"{name}.json"
        scenarios.write(scenarios.make(kind, *sizes), path)
        results.append(Result(path, options, when != "alone" or options.full))
    with open(work / "results.json", "w", encoding="utf-8") as file:
        json.dump([r.record() for r in results], file, indent=1)
    if results:
        say(f"\nTime and memory\n\n{table.speed(results)}\n\nNodes and prices\n\n{table.quality(results)}\n")
        say(growth(results))
    consolidation.bench(options, say)


def growth(results):
    """How time grows with size: below 1.1 it is no worse than n log n between 5,000 and 50,000 pods."""
    at = {r.name: r for r in results}
    small, large = at.get("diverse-5000"), at.get("diverse-50000")
    if not small or not large:
        return ""
    factor = large.ours.seconds / small.ours.seconds
    n_log_n = 10 * math.log(50000) / math.log(5000)
    return f"From 5,000 to 50,000 diverse pods our time grows {factor:.1f} times; n log n would be {n_log_n:.1f} times."


def generate(options):
    scenario = scenarios.make(options.kind, *options.sizes)
    scenario["instanceTypes"] = scenario["instanceTypes"][:: options.every]
    scenarios.write(scenario, options.out)


def main():
    parser = argparse.ArgumentParser(prog="harness", description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("bench", help="run both schedulers and print the tables")
    one.add_argument("--karpenter", required=True)
    one.add_argument("--peer", required=True)
    one.add_argument("--work", required=True, help="folder for scenarios and results")
    one.add_argument("--full", action="store_true", help="all sizes, each with the peer: hours")
    one.add_argument("--only", nargs="*", help="names such as diverse-1000, full-2000 or loose-100")
    one.add_argument("--repeat", type=int, default=3, help="our runs a scenario")
    one.add_argument("--peer-repeat", type=int, default=2, help="the peer's runs a scenario")
    one.add_argument("--limit", type=int, default=3600, help="seconds after which the peer gives up")
    one.add_argument("--bound", type=int, default=10000, help="most pods for which the lower bound is worked out")
    one.set_defaults(run=bench)
    two = commands.add_parser("generate", help="write one scenario")
    two.add_argument("kind", choices=scenarios.KINDS)
    two.add_argument("sizes", type=int, nargs="+", help="pods; for large: nodes, bound pods, pods")
    two.add_argument("-o", "--out", required=True)
    two.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th instance type")
    two.set_defaults(run=generate)
    three = commands.add_parser("replay", help="play a day of a workload with both, and print the bill, evictions and waiting times")
    three.add_argument("--karpenter", required=True)
    three.add_argument("--peer")
    three.add_argument("--work", required=True, help="folder for scenarios")
    three.add_argument("--hours", type=float, default=replay.HOURS)
    three.set_defaults(run=lambda options: replay.play(options, say))
    options = parser.parse_args()
    options.run(options)


main()
