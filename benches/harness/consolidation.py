"""Consolidation: full clusters in which nothing can be done, and loose ones that are carried on until at rest."""

import json
import pathlib
import random

from . import catalog, run, scenarios, table
from .catalog import AWS
from .objects import ARCH, MI, OS, ZONE, PodFactory, node_pool, requirement, spread

FULL, LOOSE = 0.999, 0.30
# Nodes, and whether the peer runs on it by default.
FULL_CASES = [(500, True), (1000, True), (2000, True), (5000, False), (10000, False)]
LOOSE_CASES = [(100, True), (500, False), (1000, False), (2000, False)]
# Simulations that are timed of the peer's, and how long it may take to come to rest.
SIMULATIONS, REST_SECONDS = 12, 1800


def on_demand(instance_type):
    """Prices by zone."""
    return {o["zone"]: o["price"] for o in instance_type["offerings"] if o["capacityType"] == "on-demand"}


def label(instance_type, key):
    found = next((r for r in instance_type["requirements"] if r["key"] == key), None)
    return found["values"][0] if found and found["operator"] == "In" and found["values"] else ""


def node_types(types):
    """Types of four to 34 cores of which no other is as large and cheaper: full nodes of these cannot be replaced."""
    usable = []
    for one in types:
        room = catalog.allocatable(one)
        if (label(one, ARCH) == "amd64" and label(one, AWS + "instance-category") in ("c", "m", "r")
                and int(label(one, AWS + "instance-generation") or 0) > 4 and on_demand(one)):
            usable.append((one, room, min(on_demand(one).values())))
    large = lambda other, room: other[1]["cpu"] >= 0.93 * room["cpu"] and other[1]["memory"] >= 0.93 * room["memory"]
    return [(one, room) for one, room, cost in usable
            if 4 <= room["cpu"] + 0.5 <= 34 and len(on_demand(one)) == 3 and "metal" not in one["name"]
            and not any(other[2] < cost - 1e-9 and large(other, room) for other in usable)]


def cluster(nodes, fill):
    """On-demand nodes, each with up to 20 pods that take so much of it, and three DaemonSets' pods."""
    dice, factory, types = random.Random(scenarios.SEED), PodFactory(), catalog.ec2(scenarios.SEED)
    zones, shapes, entries = list(catalog.ZONES), node_types(types), []
    for index in range(nodes):
        node, room = scenarios.ec2_node(index, dice.choice(shapes)[0], zones[index % 3], "on-demand", "default")
        bind = lambda **shape: factory.pod(**shape, node=node["metadata"]["name"])
        pods = [bind(owner=f"daemon-{name}", namespace="kube-system", labels={"app": f"daemon-{name}"}, cpu=cpu, memory=memory,
                     owner_kind="DaemonSet", spec={"tolerations": [{"operator": "Exists"}]})
                for name, cpu, memory in scenarios.DAEMONS]
        cpu = (room["cpu"] * 1000 - sum(c for _, c, _ in scenarios.DAEMONS)) * fill
        memory = (room["memory"] / MI - sum(m for _, _, m in scenarios.DAEMONS)) * fill
        count = max(3, min(20, int(room["pods"]) - 4))
        for at in range(count):
            share = (0.7 + 0.6 * dice.random()) / (count - at) if at < count - 1 else 1.0
            own = {"cpu": max(1, int(cpu * share)), "memory": max(1, int(memory * share))}
            cpu, memory = cpu - own["cpu"], memory - own["memory"]
            name, draw = f"app-{dice.randrange(200):03}", dice.random()
            labels = {"app": name}
            rule = spread(ZONE, labels, skew=50) if draw < 0.15 else spread(ZONE, labels, hard=False) if draw < 0.25 else {}
            pods.append(bind(owner=name, namespace=f"ns-{dice.randrange(25):02}", labels=labels, spec=rule, **own))
        entries.append({"node": node, "pods": pods})
    pool = node_pool("default", requirement(OS, "In", "linux"), requirement(ARCH, "In", "amd64"),
                     *scenarios.GENERAL[1:], scenarios.ON_DEMAND)
    kind = "full" if fill > 0.5 else "loose"
    return {
        "name": f"{kind}-{nodes}", "wellKnownLabels": catalog.WELL_KNOWN, "nodePools": [pool], "instanceTypes": types,
        "description": f"{nodes} on-demand nodes of which {fill:.0%} is requested", "daemonSetPods": scenarios.daemon_pods(factory),
        "nodes": entries, "pods": [], "seed": scenarios.SEED, "options": {"now": "2026-06-01T00:00:00Z"}}


class Case:
    """What both made of one cluster."""

    def __init__(self, nodes, fill, options, with_peer):
        scenario = cluster(nodes, fill)
        self.name, self.nodes, self.pods = scenario["name"], nodes, sum(len(e["pods"]) for e in scenario["nodes"])
        path = pathlib.Path(options.work) / f"{self.name}.json"
        scenarios.write(scenario, path)
        self.ours = run.disruption(options.karpenter, path, fill == LOOSE)
        self.peer = None
        if with_peer:
            rest = f"{REST_SECONDS if fill == LOOSE else 0}s"
            output, _ = run.process([options.peer, "-consolidate", str(SIMULATIONS), "-rest", rest, path])
            self.peer = json.loads(output)

    @property
    def rate(self):
        """Simulations a second, ours and the peer's."""
        ours = self.ours["simulations"] / self.ours["solveSeconds"]
        return ours, self.peer and self.peer["simulations"] / self.peer["simulateSeconds"]


def passes(cases):
    """How long a whole pass takes, how that grows, and simulations a second beside the peer's."""
    headings = ["nodes", "pods", "whole pass", "a node", "commands", "simulations/s", "peer: simulations/s", "faster"]
    rows = []
    for c in cases:
        seconds, (ours, peer) = c.ours["solveSeconds"], c.rate
        row = [str(c.nodes), str(c.pods), table.seconds(seconds), f"{seconds / c.nodes * 1e6:.0f} µs", str(len(c.ours["commands"])),
               f"{ours:,.0f}"]
        rows.append(row + ([f"{peer:.2f}", f"{ours / peer:,.0f} x"] if peer else ["not run", ""]))
    return table.markdown(headings, rows)


def rest(cases):
    """Price, passes and evictions of clusters that were carried on until nothing was left to do."""
    headings = ["nodes", "$/h before", "after", "nodes", "passes", "evictions", "a dollar", "took",
                "peer: after", "nodes", "passes", "evictions", "a dollar", "took"]
    rows = []
    for c in cases:
        plan = c.ours["plan"]
        row = [str(c.nodes), f"{plan['priceBefore']:.2f}"]
        row += half(plan["priceBefore"], plan["priceAfter"], plan["nodesAfter"], plan["passes"], plan["evictions"],
                    c.ours["solveSeconds"], plan["atRest"])
        if c.peer:
            p = c.peer["rest"]
            row += half(p["priceBefore"], p["priceAfter"], p["nodesAfter"], p["passes"], p["evictions"], p["seconds"], p["atRest"])
        else:
            row += ["not run"] + [""] * 5
        rows.append(row)
    return table.markdown(headings, rows)


def half(before, after, nodes, count, evictions, seconds, at_rest):
    per_dollar = f"{evictions / (before - after):.1f}" if before > after else ""
    return [f"{after:.2f}", str(nodes), str(count) + ("" if at_rest else " (not at rest)"), str(evictions), per_dollar,
            table.seconds(seconds)]


def bench(options, say):
    """Runs the cases and prints both tables."""
    pathlib.Path(options.work).mkdir(parents=True, exist_ok=True)
    made = {}
    for fill, cases in ((FULL, FULL_CASES), (LOOSE, LOOSE_CASES)):
        made[fill] = []
        for nodes, with_peer in cases:
            name = f"{'full' if fill == FULL else 'loose'}-{nodes}"
            if options.only is None or name in options.only:
                say(name)
                made[fill].append(Case(nodes, fill, options, options.peer and (with_peer or options.full)))
    if made[FULL]:
        say(f"\nA pass of disruption in which hardly anything can be done\n\n{passes(made[FULL])}\n")
    if made[LOOSE]:
        say(f"\nClusters of which 30 % is requested, carried on until at rest\n\n{rest(made[LOOSE])}\n")
