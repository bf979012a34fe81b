"""Seeded scenarios: the same kind, size and seed always give the same file."""

import functools
import json
import random

from . import catalog
from .catalog import AWS
from .objects import (ARCH, CAPACITY_TYPE, HOSTNAME, INSTANCE_TYPE, MADE, MI, NODEPOOL, OS, ZONE, PodFactory, merge,
                      node_pool, on_nodes, rather_on_nodes, requirement, spread, tolerate, with_others)

SEED = 42
TEAMS = [f"team-{i:02}" for i in range(10)]
DAEMONS = [("logs", 50, 128), ("network", 25, 40), ("metrics", 100, 180)]


def diverse(pods, types=400):
    """Five kinds of pods in equal shares, one NodePool, linear types."""
    dice, factory, waiting = random.Random(SEED), PodFactory(), []
    sizes = lambda: {"cpu": dice.choice([100, 250, 500, 1000, 1500]),
                     "memory": dice.choice([100, 256, 512, 1024, 2048, 4096])}
    some = lambda key: {key: dice.choice("abcdefg")}
    apart = {"app": "apart"}
    for index in range(pods):
        kind = index * 5 // pods
        if kind == 0:
            waiting.append(factory.pod("plain", labels=some("group"), **sizes()))
        elif kind in (1, 2):
            key = ZONE if kind == 1 else HOSTNAME
            waiting.append(factory.pod("spread", labels=some("group"), spec=spread(key, some("group")), **sizes()))
        elif kind == 3:
            labels = some("together")
            rule = with_others("podAffinity", ZONE, labels)
            waiting.append(factory.pod("together", labels=labels, spec=rule, **sizes()))
        else:
            rule = with_others("podAntiAffinity", HOSTNAME, apart)
            waiting.append(factory.pod("apart", labels=apart, spec=rule, **sizes()))
    return {
        "name": f"diverse-{pods}", "wellKnownLabels": catalog.LINEAR_WELL_KNOWN,
        "description": f"{pods} pods of five kinds, {types} linear instance types, one NodePool",
        "nodePools": [node_pool("default", requirement(CAPACITY_TYPE, "Exists"))],
        "instanceTypes": catalog.linear(types), "pods": waiting}


def preferences(pods, types=400):
    """Equal pods with preferences of which some cannot be met."""
    labels = {"app": "choosy"}
    spec = merge(rather_on_nodes(1, requirement(ZONE, "In", "test-zone-1")),
                 {"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                     {"weight": weight, "podAffinityTerm": {"topologyKey": key, "labelSelector": {"matchLabels": labels}}}
                     for weight, key in ((10, ZONE), (1, HOSTNAME))]}}})
    factory = PodFactory()
    return {
        "name": f"preferences-{pods}", "wellKnownLabels": catalog.LINEAR_WELL_KNOWN,
        "description": f"{pods} equal pods that prefer a zone and distance from each other",
        "nodePools": [node_pool("default", requirement(CAPACITY_TYPE, "Exists"))],
        "instanceTypes": catalog.linear(types),
        "pods": [factory.pod("choosy", labels=labels, cpu=500, memory=1024, spec=spec) for _ in range(pods)]}


GENERAL = [requirement(OS, "In", "linux"), requirement(AWS + "instance-category", "In", "c", "m", "r"),
           requirement(AWS + "instance-generation", "Gt", "4")]
ANY_KIND = requirement(CAPACITY_TYPE, "In", "spot", "on-demand")
ON_DEMAND = requirement(CAPACITY_TYPE, "In", "on-demand")


def homogeneous(pods, deployments=10):
    """Deployments of equal pods without rules, EC2 types, one NodePool."""
    dice, factory, waiting = random.Random(SEED), PodFactory(), []
    for index in range(deployments):
        cpu, memory = dice.choice([100, 250, 500, 1000, 2000]), dice.choice([128, 256, 512, 1024, 2048, 4096])
        share = pods // deployments + (index < pods % deployments)
        name = f"web-{index:02}"
        waiting += [factory.pod(name, labels={"app": name}, cpu=cpu, memory=memory) for _ in range(share)]
    return {
        "name": f"homogeneous-{pods}", "wellKnownLabels": catalog.WELL_KNOWN,
        "description": f"{pods} pods of {deployments} deployments without rules, EC2's instance types, one NodePool",
        "nodePools": [node_pool("default", *GENERAL, ANY_KIND)], "instanceTypes": catalog.ec2(SEED), "pods": waiting}


def daemon_pods(factory):
    return [factory.pod(f"daemon-{name}", namespace="kube-system", labels={"app": f"daemon-{name}"}, cpu=cpu,
                        memory=memory, owner_kind="DaemonSet", spec={"tolerations": [{"operator": "Exists"}]})
            for name, cpu, memory in DAEMONS]


def twenty_pools():
    """The NodePools of a cluster that many teams share."""
    amd64 = requirement(ARCH, "In", "amd64")
    workload = lambda name: {"taint": ("workload", name, "NoSchedule"), "labels": {"workload": name}, "weight": 20}
    linux = requirement(OS, "In", "linux")
    category = lambda *names: requirement(AWS + "instance-category", "In", *names)
    return [
        node_pool("general-amd64", *GENERAL, amd64, ANY_KIND, weight=50),
        node_pool("general-arm64", *GENERAL, requirement(ARCH, "In", "arm64"), ANY_KIND, weight=40),
        node_pool("on-demand", *GENERAL, ON_DEMAND, weight=30),
        node_pool("burstable", linux, category("t"), ON_DEMAND, weight=5),
        node_pool("gpu", linux, category("g", "p"), ANY_KIND, weight=20, taint=("nvidia.com/gpu", "true", "NoSchedule")),
        node_pool("storage", linux, requirement(AWS + "instance-local-nvme", "Gt", "100"), ON_DEMAND, **workload("storage")),
        node_pool("memory", linux, category("r", "x"), ANY_KIND, **workload("memory")),
        node_pool("batch", *GENERAL, requirement(CAPACITY_TYPE, "In", "spot"), **workload("batch")),
        node_pool("fallback", linux, ON_DEMAND),
        node_pool("rather-not", *GENERAL, ANY_KIND, taint=("soft", "true", "PreferNoSchedule")),
        *(node_pool(team, *GENERAL, amd64, ANY_KIND, weight=10, labels={"team": team},
                    taint=("team", team, "NoSchedule")) for team in TEAMS)]


def between_pods(dice, own):
    """The rule between pods that a deployment has, if any."""
    draw = dice.random()
    steps = [
        (0.25, lambda: spread(ZONE, own)), (0.35, lambda: spread(ZONE, own, hard=False)),
        (0.43, lambda: spread(HOSTNAME, own, skew=dice.choice([1, 2, 5]))),
        (0.49, lambda: with_others("podAntiAffinity", HOSTNAME, own)),
        (0.56, lambda: with_others("podAntiAffinity", HOSTNAME, own, hard=False)),
        (0.59, lambda: with_others("podAffinity", ZONE, own))]
    return next((rule() for limit, rule in steps if draw < limit), {})


def deployment(dice, index):
    """A deployment of a company's cluster: its pod, and how many of them there are."""
    name = f"app-{index:04}"
    cpu = dice.choice([50, 100, 100, 200, 250, 250, 500, 500, 1000, 1000, 2000, 4000])
    memory = max(64, int(cpu * dice.choice([0.5, 1, 2, 2, 4, 4, 8]) * 1.024))
    rule, place, extra = between_pods(dice, {"app": name}), {}, None
    draw = dice.random()
    if draw < 0.12:
        team = dice.choice(TEAMS)
        place = {"nodeSelector": {"team": team}, "tolerations": [tolerate("team", team)]}
    elif draw < 0.18:
        place = {"nodeSelector": {ARCH: dice.choice(["arm64", "arm64", "amd64"])}}
    elif draw < 0.24:
        place = {"nodeSelector": {CAPACITY_TYPE: "on-demand"}}
    elif draw < 0.33:
        kind = "batch" if draw < 0.28 else "memory" if draw < 0.31 else "storage"
        place = {"nodeSelector": {"workload": kind}, "tolerations": [tolerate("workload")]}
        memory = max(memory, cpu * 7) if kind == "memory" else memory
    elif draw < 0.35:
        place = {"tolerations": [tolerate("nvidia.com/gpu")]}
        extra, cpu, memory = {"nvidia.com/gpu": dice.choice(["1", "1", "2", "4"])}, 4000, 12288
    elif draw < 0.39:
        place = on_nodes(requirement(AWS + "instance-cpu", "Gt", "7"),
                         requirement(AWS + "instance-family", "NotIn", "m5", "c5"))
    elif draw < 0.43:
        place = rather_on_nodes(50, requirement(ZONE, "In", "us-east-1a"))
    return {
        "owner": name, "namespace": f"ns-{index % 25:02}", "cpu": cpu, "memory": memory, "extra": extra,
        "labels": {"app": name, "tier": dice.choice(["web", "api", "worker", "cache"])}, "spec": merge(rule, place),
    }, min(300, max(1, int(dice.paretovariate(0.9))) * dice.choice([1, 2, 3, 4]))


def realistic(pods):
    """Deployments of all sizes with mixed rules, 20 NodePools, three DaemonSets, EC2 types."""
    dice, factory, waiting, count = random.Random(SEED), PodFactory(), [], 0
    while len(waiting) < pods:
        shape, replicas = deployment(dice, count)
        count += 1
        waiting += [factory.pod(**shape) for _ in range(min(replicas, pods - len(waiting)))]
    return {
        "name": f"realistic-{pods}", "wellKnownLabels": catalog.WELL_KNOWN, "nodePools": twenty_pools(),
        "description": f"{pods} pods of {count} deployments, 20 NodePools, EC2's instance types",
        "instanceTypes": catalog.ec2(SEED), "daemonSetPods": daemon_pods(factory), "pods": waiting}


def ec2_node(index, instance_type, zone, capacity_type, pool):
    """A settled node, and what it leaves to pods."""
    name = f"ip-10-{index // 62500}-{index // 250 % 250}-{index % 250}.ec2.internal"
    labels = {key["key"]: key["values"][0] for key in instance_type["requirements"]
              if key["operator"] == "In" and len(key["values"]) == 1}
    labels.update({HOSTNAME: name, ZONE: zone, catalog.ZONE_ID: catalog.ZONES[zone], CAPACITY_TYPE: capacity_type,
                   NODEPOOL: pool, INSTANCE_TYPE: instance_type["name"], "karpenter.sh/registered": "true",
                   "karpenter.sh/initialized": "true"})
    room = catalog.allocatable(instance_type)
    node = {
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": f"node-{index}", "labels": labels, "creationTimestamp": MADE},
        "spec": {"providerID": f"aws:///{zone}/i-{index:017x}"},
        "status": {"capacity": instance_type["capacity"], "allocatable": catalog.as_quantities(room),
                   "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}}
    return node, room


class Cluster:
    """Nodes that fill up with pods, round and round, so that replicas lie apart as their rules ask."""

    def __init__(self, dice, factory, nodes, types):
        names = ("m5.2xlarge", "m6i.2xlarge", "c6i.4xlarge", "r6i.2xlarge", "m6a.4xlarge", "m7i.2xlarge")
        shapes = [t for t in types if t["name"] in names]
        self.factory, self.entries, self.rooms, self.at = factory, [], [], 0
        zones = list(catalog.ZONES)
        for index in range(nodes):
            kind = dice.choice(["spot", "on-demand"])
            node, room = ec2_node(index, dice.choice(shapes), zones[index % 3], kind, "general-amd64")
            self.entries.append({"node": node, "pods": []})
            self.rooms.append(room)
            for name, cpu, memory in DAEMONS:
                self.bind(index, {"owner": f"daemon-{name}", "namespace": "kube-system", "cpu": cpu, "memory": memory,
                                  "labels": {"app": f"daemon-{name}"}, "owner_kind": "DaemonSet",
                                  "spec": {"tolerations": [{"operator": "Exists"}]}})

    def bind(self, index, shape):
        entry, room = self.entries[index], self.rooms[index]
        room["pods"] -= 1
        room["cpu"] -= shape["cpu"] / 1000
        room["memory"] -= shape["memory"] * MI
        entry["pods"].append(self.factory.pod(**shape, node=entry["node"]["metadata"]["name"]))

    def take(self, shape):
        """Binds a pod to the next node with room; false when there is none."""
        for _ in self.entries:
            self.at = (self.at + 1) % len(self.entries)
            room = self.rooms[self.at]
            if room["pods"] >= 1 and room["cpu"] >= shape["cpu"] / 1000 and room["memory"] >= shape["memory"] * MI:
                self.bind(self.at, shape)
                return True
        return False


def large(nodes, bound, pods):
    """Nodes that exist with their pods; of those that wait, half belong to deployments that run already."""
    dice, factory, types = random.Random(SEED), PodFactory(), catalog.ec2(SEED)
    cluster, running, count = Cluster(dice, factory, nodes, types), [], 0
    while bound > 0:
        shape, replicas = deployment(dice, count)
        count += 1
        if shape["extra"] or "nodeSelector" in shape["spec"] or "nodeAffinity" in shape["spec"].get("affinity", {}):
            continue
        shape["cpu"], shape["memory"] = min(shape["cpu"], 500), min(shape["memory"], 1280)
        running.append(shape)
        for _ in range(min(replicas, bound)):
            bound = bound - 1 if cluster.take(shape) else 0
    waiting = []
    while len(waiting) < pods:
        shape, replicas = deployment(dice, count)
        count += 1
        if dice.random() < 0.5:
            shape = dice.choice(running)
        waiting += [factory.pod(**shape) for _ in range(min(replicas, pods - len(waiting)))]
    total = sum(len(entry["pods"]) for entry in cluster.entries)
    return {
        "name": f"large-{nodes}", "wellKnownLabels": catalog.WELL_KNOWN, "nodePools": twenty_pools(),
        "description": f"{nodes} nodes with {total} pods, {pods} pods wait, 20 NodePools, EC2's instance types",
        "instanceTypes": types, "daemonSetPods": daemon_pods(factory), "nodes": cluster.entries, "pods": waiting}


KINDS = {"diverse": diverse, "preferences": preferences, "homogeneous": homogeneous, "realistic": realistic, "large": large}


def make(kind, *sizes):
    return {"seed": SEED, "options": {}, **KINDS[kind](*sizes)}


def write(scenario, path):
    """Writes the document bit by bit: the encoder works on whole values, and large ones are many gigabytes."""
    encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
    with open(path, "w", encoding="utf-8") as file:
        for at, (key, value) in enumerate(scenario.items()):
            file.write(("{" if at == 0 else ",\n") + encode(key) + ":")
            if isinstance(value, list):
                file.write("[")
                for index, item in enumerate(value):
                    file.write((",\n" if index else "") + encode(item))
                file.write("]")
            else:
                file.write(encode(value))
        file.write("}\n")
