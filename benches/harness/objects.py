"""Kubernetes objects as scenario files hold them."""

import copy

ZONE = "topology.kubernetes.io/zone"
HOSTNAME = "kubernetes.io/hostname"
ARCH = "kubernetes.io/arch"
OS = "kubernetes.io/os"
CAPACITY_TYPE = "karpenter.sh/capacity-type"
NODEPOOL = "karpenter.sh/nodepool"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
MADE = "2026-01-01T00:00:00Z"
MI = 1 << 20

UNITS = {"m": 1e-3, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


def quantity(text):
    """A Kubernetes quantity as a number."""
    for unit, factor in UNITS.items():
        if str(text).endswith(unit):
            return float(text[: -len(unit)]) * factor
    return float(text)


def requirement(key, operator, *values):
    entry = {"key": key, "operator": operator}
    if values:
        entry["values"] = [str(v) for v in values]
    return entry


class PodFactory:
    """Numbers pods, so that every name is used once."""

    def __init__(self):
        self.made = 0

    def pod(self, owner, *, namespace="default", labels=None, cpu=100, memory=128, spec=None,
            extra=None, node=None, owner_kind="ReplicaSet"):
        """A pod; cpu in thousandths, memory in MiB. With a node it is bound and runs, else it waits."""
        self.made += 1
        requests = {"cpu": f"{cpu}m", "memory": f"{memory}Mi", **(extra or {})}
        resources = {"requests": requests}
        if extra:
            resources["limits"] = dict(extra)
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{owner}-{self.made}",
                "namespace": namespace,
                "uid": f"00000000-0000-4000-8000-{self.made:012x}",
                "labels": labels or {},
                "creationTimestamp": MADE,
                "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": owner_kind, "name": owner, "uid": f"uid-{owner}"}
                ],
            },
            "spec": {"containers": [{"name": "app", "image": "app", "resources": resources}], **copy.deepcopy(spec or {})},
        }
        if node:
            pod["spec"]["nodeName"] = node
            pod["status"] = {"phase": "Running", "startTime": MADE, "conditions": [
                {"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]}
        else:
            pod["status"] = {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}
        return pod


def spread(key, labels, skew=1, hard=True):
    return {"topologySpreadConstraints": [{
        "topologyKey": key, "maxSkew": skew, "labelSelector": {"matchLabels": labels},
        "whenUnsatisfiable": "DoNotSchedule" if hard else "ScheduleAnyway"}]}


def with_others(kind, key, labels, hard=True, weight=10):
    """Affinity ("podAffinity") or anti-affinity ("podAntiAffinity") to pods with these labels."""
    term = {"topologyKey": key, "labelSelector": {"matchLabels": labels}}
    if hard:
        rule = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    else:
        rule = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": weight, "podAffinityTerm": term}]}
    return {"affinity": {kind: rule}}


def on_nodes(*expressions):
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": list(expressions)}]}}}}


def rather_on_nodes(weight, *expressions):
    return {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": weight, "preference": {"matchExpressions": list(expressions)}}]}}}


def merge(*specs):
    """One pod spec of several; affinities go together."""
    whole = {}
    for spec in specs:
        for key, value in copy.deepcopy(spec).items():
            if key == "affinity":
                whole.setdefault("affinity", {}).update(value)
            else:
                whole[key] = value
    return whole


def node_pool(name, *requirements, weight=None, taint=None, labels=None):
    pool = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": name},
        "spec": {
            "template": {
                "metadata": {"labels": labels or {}},
                "spec": {
                    "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"},
                    "requirements": list(requirements),
                    "expireAfter": "720h",
                },
            },
            "disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "0s",
                           "budgets": [{"nodes": "100%"}]},
            "limits": {"cpu": "10000000", "memory": "10000000Gi"},
        },
    }
    if weight:
        pool["spec"]["weight"] = weight
    if taint:
        key, value, effect = taint
        pool["spec"]["template"]["spec"]["taints"] = [{"key": key, "value": value, "effect": effect}]
    return pool


def tolerate(key, value=None):
    if value is None:
        return {"key": key, "operator": "Exists"}
    return {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
