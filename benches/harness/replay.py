"""A day of a workload, step by step, played with the decisions of both.

Both sides are driven by the same loop, since of the peer only its scheduler and its consolidation can be driven as a library: pods come
and go with the hour, pods that wait are placed, and consolidation is asked until it finds nothing more or the step is over. The pods
of nodes that go wait again, and the replacements are there by then. What a controller does beside deciding is not played: batches, marks,
drains, budgets, `consolidateAfter`, interruptions, failures of the cloud. `karpenter replay` plays all of that with our controllers.
"""

import json
import math
import pathlib
import random
import statistics
import time

from . import catalog, run, scenarios, table
from .objects import ARCH, MADE, ZONE, PodFactory, node_pool, requirement, spread

HOURS, STEP = 24, 0.5
# Consolidation waits 15 s to validate each command and more to drain: more passes do not fit a step.
PASSES = 12
# Seconds until a pod is bound: with a node that is there, and with one that is launched for it (batch, launch, boot).
BOUND, LAUNCHED = 1, 55
EVERY = 8


class App:
    """A Deployment whose replicas follow the hour."""

    def __init__(self, name, shape, low, high, rule):
        self.name, self.shape, self.low, self.high, self.rule = name, shape, low, high, rule

    def replicas(self, hour):
        wave = (1 - math.cos((hour - 2) / 24 * 2 * math.pi)) / 2
        return round(self.low + (self.high - self.low) * wave)


def apps():
    dice, made = random.Random(scenarios.SEED), []
    for index in range(30):
        name = f"app-{index:02}"
        shape = {"cpu": dice.choice([100, 250, 500, 1000, 2000]), "memory": dice.choice([256, 512, 1024, 2048, 4096])}
        low = dice.randint(2, 8)
        rule = spread(ZONE, {"app": name}) if index % 4 == 0 else {}
        made.append(App(name, shape, low, low * dice.randint(1, 5), rule))
    return made


class Side:
    """One of both: its cluster, and what it cost so far."""

    def __init__(self, name, provision, commands, work):
        self.name, self.provision, self.commands = name, provision, commands
        self.path = pathlib.Path(work) / f"replay-{name}.json"
        self.types = catalog.ec2(scenarios.SEED)[::EVERY]
        self.by_name = {t["name"]: t for t in self.types}
        self.factory, self.apps = PodFactory(), apps()
        self.daemons = scenarios.daemon_pods(self.factory)
        self.nodes, self.waiting, self.running, self.waits = {}, {}, {}, []
        self.bill = self.node_hours = self.seconds = 0.0
        self.launches = self.evictions = self.count = self.passes = 0

    def scenario(self):
        pool = node_pool("default", *scenarios.GENERAL, requirement(ARCH, "In", "amd64"), scenarios.ON_DEMAND)
        entries = [{"node": n["node"], "pods": n["daemons"] + [self.running[p] for p in n["pods"]]} for n in self.nodes.values()]
        scenarios.write({"name": "replay", "wellKnownLabels": catalog.WELL_KNOWN, "nodePools": [pool], "instanceTypes": self.types,
                         "daemonSetPods": self.daemons, "nodes": entries, "pods": list(self.waiting.values()),
                         "options": {"now": "2026-06-01T00:00:00Z"}}, self.path)
        return self.path

    def ask(self, command):
        path, start = self.scenario(), time.monotonic()
        answer = json.loads(run.process([*command, path])[0])
        self.seconds += time.monotonic() - start
        return answer

    def launch(self, claim):
        cheapest, self.count = claim["cheapest"], self.count + 1
        kind = self.by_name[cheapest["instanceType"]]
        node, _ = scenarios.ec2_node(self.count, kind, cheapest["zone"], cheapest["capacityType"], "default")
        name = node["metadata"]["name"]
        daemons = [self.factory.pod(f"daemon-{d}", namespace="kube-system", labels={"app": f"daemon-{d}"}, cpu=cpu, memory=memory, node=name,
                                    owner_kind="DaemonSet", spec={"tolerations": [{"operator": "Exists"}]})
                   for d, cpu, memory in scenarios.DAEMONS]
        self.nodes[name] = {"node": node, "daemons": daemons, "pods": [], "price": cheapest["price"]}
        self.launches += 1
        return name

    def bind(self, pod, node, wait):
        own = self.waiting.pop(pod)
        own["spec"]["nodeName"] = node
        own["status"] = {"phase": "Running", "startTime": MADE, "conditions": [
            {"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]}
        self.running[pod] = own
        self.nodes[node]["pods"].append(pod)
        self.waits.append(wait)

    def unbind(self, pod):
        own = self.running.pop(pod)
        node = own["spec"].pop("nodeName")
        self.nodes[node]["pods"].remove(pod)
        return own

    def scale(self, hour):
        for app in self.apps:
            own = lambda pods: [name for name, pod in pods.items() if pod["metadata"]["labels"].get("app") == app.name]
            waiting, running = own(self.waiting), own(self.running)
            wanted = app.replicas(hour)
            for _ in range(len(waiting) + len(running), wanted):
                pod = self.factory.pod(app.name, labels={"app": app.name}, spec=app.rule, **app.shape)
                self.waiting[f"default/{pod['metadata']['name']}"] = pod
            # Pods that wait go first, then the youngest.
            for name in (list(reversed(waiting)) + list(reversed(running)))[: max(0, len(waiting) + len(running) - wanted)]:
                if name in self.waiting:
                    del self.waiting[name]
                else:
                    self.unbind(name)

    def place(self):
        if not self.waiting:
            return
        answer = self.ask(self.provision)
        for node in answer["existingNodes"]:
            for pod in node["pods"]:
                self.bind(pod, node["name"], BOUND)
        for claim in answer["nodeClaims"]:
            node = self.launch(claim)
            for pod in claim["pods"]:
                self.bind(pod, node, LAUNCHED)

    def consolidate(self):
        for _ in range(PASSES):
            found = self.ask(self.commands)["commands"]
            if not found:
                return
            self.passes += 1
            for command in found:
                for replacement in command["replacements"]:
                    self.launch(replacement)
                for name in command["candidates"]:
                    for pod in list(self.nodes[name]["pods"]):
                        own = self.unbind(pod)
                        own["status"] = {"phase": "Pending", "conditions": [
                            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}
                        self.waiting[pod] = own
                        self.evictions += 1
                    del self.nodes[name]
            self.place()

    def step(self, hour):
        self.scale(hour)
        self.place()
        self.consolidate()
        self.bill += STEP * sum(n["price"] for n in self.nodes.values())
        self.node_hours += STEP * len(self.nodes)

    def row(self):
        waits = sorted(self.waits)
        late = waits[int(0.99 * (len(waits) - 1))]
        return [self.name, f"{self.bill:.2f}", f"{self.node_hours:.0f}", str(self.launches), str(self.evictions), str(self.passes),
                f"{statistics.median(waits)} s", f"{late} s", str(len(self.waiting)), table.seconds(self.seconds)]


def play(options, say):
    """Plays the day with both and prints the table."""
    pathlib.Path(options.work).mkdir(parents=True, exist_ok=True)
    sides = [Side("ours", [options.karpenter, "simulate", "--output", "json", "--scenario"],
                  [options.karpenter, "simulate", "--disrupt", "--output", "json", "--scenario"], options.work)]
    if options.peer:
        sides.append(Side("peer", [options.peer], [options.peer, "-disrupt"], options.work))
    for step in range(int(options.hours / STEP)):
        for side in sides:
            side.step(step * STEP)
        say(f"  {step * STEP:4.1f} h: " + ", ".join(
            f"{s.name} {len(s.running)} pods on {len(s.nodes)} nodes, {s.bill:.2f} $" for s in sides))
    headings = ["", "bill $", "node hours", "launches", "evictions", "commands", "wait, median", "99th", "waiting at the end", "took"]
    say("\n" + table.markdown(headings, [s.row() for s in sides]))
