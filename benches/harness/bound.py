"""A price that no packing of the pods can beat, by linear programming.

Variables: how many nodes of each option, an option being what a NodePool can launch (instance type
and the capacity types and zones that some pods insist on), at its lowest price; and how many pods
of each group go to each option. A group's pods ask for the same and follow the same rules. Held are
- each group's size;
- for each option and resource, what its pods ask for within what its nodes leave after daemons;
- for each option, at most k pods a node of those that a rule keeps k to a host (anti-affinity
  between themselves, a spread by host name).
Whole numbers, spread by zone, affinity and the weights of NodePools are left out, and an option's
price is the lowest that any of its pods allows: all of that only lowers the result.
"""

import json

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from .objects import CAPACITY_TYPE, HOSTNAME, INSTANCE_TYPE, NODEPOOL, ZONE, quantity

OF_OFFERING = (CAPACITY_TYPE, ZONE)
SCALE = {"memory": 2**30, "ephemeral-storage": 2**30}


def meets(expression, values):
    """Whether one of a label's possible values (nothing: no such label) meets an expression."""
    operator, named = expression["operator"], expression.get("values", [])
    if operator == "In":
        return any(v in named for v in values)
    if operator == "NotIn":
        return not values or any(v not in named for v in values)
    if operator == "Exists":
        return bool(values)
    if operator == "DoesNotExist":
        return not values
    compare = {"Gt": float.__gt__, "Lt": float.__lt__, "Gte": float.__ge__, "Lte": float.__le__}[operator]
    return any(compare(float(v), float(named[0])) for v in values)


def tolerated(taints, tolerations):
    def one(taint):
        return taint["effect"] == "PreferNoSchedule" or any(
            t.get("key", taint["key"]) == taint["key"] and t.get("effect", taint["effect"]) == taint["effect"]
            and (t.get("operator") == "Exists" or t.get("value", "") == taint.get("value", "")) for t in tolerations)
    return all(map(one, taints))


def requests_of(pod):
    total = {"pods": 1.0}
    for container in pod["spec"]["containers"]:
        for name, amount in container.get("resources", {}).get("requests", {}).items():
            total[name] = total.get(name, 0) + quantity(amount)
    return total


class Option:
    """A pool's way to launch an instance type."""

    def __init__(self, pool, instance_type, daemons):
        spec = pool["spec"]["template"]["spec"]
        self.taints = spec.get("taints", [])
        self.labels = {r["key"]: r.get("values", []) if r["operator"] == "In" else [] for r in instance_type["requirements"]}
        self.labels[INSTANCE_TYPE] = [instance_type["name"]]
        self.fits_pool = all(meets(r, self.labels.get(r["key"], [])) for r in spec["requirements"] if r["key"] not in OF_OFFERING)
        self.labels.update({k: [v] for k, v in pool["spec"]["template"]["metadata"].get("labels", {}).items()})
        self.labels[NODEPOOL] = [pool["metadata"]["name"]]
        self.offerings = [o for o in instance_type["offerings"] if o["available"] and offered(o, spec["requirements"])]
        self.room = {name: quantity(amount) for name, amount in instance_type["capacity"].items()}
        for taken in ({k: quantity(v) for k, v in instance_type["overhead"].items()}, daemons):
            for name, amount in taken.items():
                self.room[name] = self.room.get(name, 0) - amount

    def usable(self):
        return self.fits_pool and self.offerings


def offered(offering, expressions):
    labels = {CAPACITY_TYPE: [offering["capacityType"]], ZONE: [offering["zone"]]}
    return all(meets(e, labels[e["key"]]) for e in expressions if e["key"] in labels)


class Group:
    """Pods that are alike."""

    def __init__(self, pod):
        spec = pod["spec"]
        self.size, self.requests, self.tolerations = 0, requests_of(pod), spec.get("tolerations") or []
        selector = [{"key": k, "operator": "In", "values": [v]} for k, v in (spec.get("nodeSelector") or {}).items()]
        affinity = spec.get("affinity") or {}
        required = (affinity.get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
        self.terms = [selector + t["matchExpressions"] for t in required["nodeSelectorTerms"]] if required else [selector]
        self.a_host = sorted(self._a_host(pod, affinity))
        self.key = json.dumps([self.requests, self.terms, self.tolerations, self.a_host], sort_keys=True)

    def _a_host(self, pod, affinity):
        """Rules that keep this pod and others of its kind to a number of pods a host."""
        labels, space = pod["metadata"].get("labels", {}), pod["metadata"]["namespace"]
        own = lambda selector: all(labels.get(k) == v for k, v in selector["matchLabels"].items())
        name = lambda selector: space + json.dumps(selector, sort_keys=True)
        apart = (affinity.get("podAntiAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution", [])
        for term in apart:
            if term["topologyKey"] == HOSTNAME and own(term["labelSelector"]):
                yield ("apart" + name(term["labelSelector"]), 1)
        for rule in pod["spec"].get("topologySpreadConstraints", []):
            hard = rule["whenUnsatisfiable"] == "DoNotSchedule"
            if hard and rule["topologyKey"] == HOSTNAME and own(rule["labelSelector"]):
                # Others that carry the labels without the rule may share the host, so each rule counts its own pods.
                yield ("spread" + name(rule["labelSelector"]), rule["maxSkew"])

    def offerings_on(self, option):
        """The offerings of an option that the pods can use."""
        if not tolerated(option.taints, self.tolerations):
            return []
        if any(amount > option.room.get(name, 0) + 1e-9 for name, amount in self.requests.items()):
            return []
        found = []
        for term in self.terms:
            rest = [e for e in term if e["key"] not in OF_OFFERING]
            if all(meets(e, option.labels.get(e["key"], [])) for e in rest):
                found += [o for o in option.offerings if offered(o, term)]
        return found


def groups_of(pods):
    groups = {}
    for pod in pods:
        group = Group(pod)
        groups.setdefault(group.key, group).size += 1
    return list(groups.values())


def priced(groups, options):
    """Which group may use which option: rows of (group, option, price) with one option a price."""
    variants, uses = {}, []
    for g, group in enumerate(groups):
        for o, option in enumerate(options):
            usable = group.offerings_on(option)
            if usable:
                # Pods that insist on some offerings may share a node with pods that would take any,
                # so the others may use the dearer variant as well, never the reverse.
                uses.append((g, o, round(min(x["price"] for x in usable), 9)))
    for _, o, price in uses:
        variants.setdefault(o, set()).add(price)
    return [(g, (o, price)) for g, o, least in uses for price in variants[o] if price >= least]


def without_dominated(uses, options, resources):
    """Leaves out variants that cost no less and hold no more than another that the same groups may use."""
    users = {}
    for g, variant in uses:
        users.setdefault(variant, []).append(g)
    alike = {}
    for variant, who in users.items():
        alike.setdefault(tuple(who), []).append(variant)
    kept = set()
    for variants in alike.values():
        rows = np.array([[-options[o].room.get(r, 0) for r in resources] + [price] for o, price in variants])
        for at, row in enumerate(rows):
            no_worse = (rows <= row + 1e-12).all(axis=1)
            better = no_worse & (rows < row - 1e-12).any(axis=1)
            twin = no_worse & ~better & (np.arange(len(rows)) < at)
            if not better.any() and not twin.any():
                kept.add(variants[at])
    return [(g, variant) for g, variant in uses if variant in kept]


class Rows:
    """A sparse matrix in the making."""

    def __init__(self):
        self.at, self.entries, self.right = 0, [], []

    def add(self, entries, right):
        self.entries += [(self.at, column, value) for column, value in entries]
        self.right.append(right)
        self.at += 1

    def matrix(self, columns):
        rows, cols, values = zip(*self.entries)
        return coo_matrix((values, (rows, cols)), shape=(self.at, columns)).tocsr()


def bound(scenario, placed=None):
    """The lower bound for the pods named in `placed` (all when nothing), or nothing when there is none."""
    pods = [p for p in scenario["pods"] if placed is None or f"{p['metadata']['namespace']}/{p['metadata']['name']}" in placed]
    if not pods:
        return 0.0
    daemons = {}
    for pod in scenario.get("daemonSetPods", []):
        for name, amount in requests_of(pod).items():
            daemons[name] = daemons.get(name, 0) + amount
    made = (Option(p, t, daemons) for p in scenario["nodePools"] for t in scenario["instanceTypes"])
    options = [option for option in made if option.usable()]
    groups = groups_of(pods)
    resources = sorted({name for group in groups for name in group.requests})
    uses = without_dominated(priced(groups, options), options, resources)
    variants = sorted({variant for _, variant in uses})
    column = {variant: at for at, variant in enumerate(variants)}
    count = len(variants) + len(uses)
    by_group, by_variant = {}, {}
    for at, (g, variant) in enumerate(uses, len(variants)):
        by_group.setdefault(g, []).append(at)
        by_variant.setdefault(variant, []).append((g, at))
    equal, least = Rows(), Rows()
    for g, columns in by_group.items():
        equal.add([(at, 1.0) for at in columns], float(groups[g].size))
    for variant, members in by_variant.items():
        nodes, room = column[variant], options[variant[0]].room
        for name in resources:
            scale = SCALE.get(name, 1.0)
            entries = [(at, groups[g].requests[name] / scale) for g, at in members if groups[g].requests.get(name)]
            if entries:
                least.add([*entries, (nodes, -room.get(name, 0) / scale)], 0.0)
        rules = {}
        for g, at in members:
            for rule in groups[g].a_host:
                rules.setdefault(rule, []).append(at)
        for (_, most), columns in rules.items():
            least.add([*((at, 1.0) for at in columns), (nodes, -float(most))], 0.0)
    cost = np.zeros(count)
    cost[: len(variants)] = [price for _, price in variants]
    answer = linprog(cost, A_ub=least.matrix(count), b_ub=least.right, A_eq=equal.matrix(count), b_eq=equal.right, method="highs-ipm")
    return float(answer.fun) if answer.status == 0 else None
