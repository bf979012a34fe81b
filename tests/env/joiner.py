#!/usr/bin/env python3
"""Stands for the boot of every instance, and for the cloud controller manager.

An instance that runs is given a Node if its user data would make its image join this cluster;
the Node of an instance that is gone is deleted.
"""

import argparse
import base64
import csv
import json
import pathlib
import sys
import time
import urllib.error
import urllib.request

from boot import node as nodes
from boot import userdata
from cluster.objects import CSI_DAEMON_SET, CSI_DRIVER, csi_node
from kube import Api

GONE = ("shutting-down", "terminated")
CSI_NODES = "/apis/storage.k8s.io/v1/csinodes"
# Branch interfaces by instance type: what the VPC resource controller serves.
LIMITS = pathlib.Path(__file__).resolve().parents[2] / "data/network-limits.csv"


def say(what, **more):
    stamp = time.strftime("%H:%M:%S")
    print(stamp, what, *(f"{k}={v}" for k, v in more.items()), flush=True)


class Joiner:
    """Knows which instances have booted, and as which Node."""

    def __init__(self, api, settings):
        self.api, self.settings = api, settings
        self.running_since, self.joined, self.refused = {}, {}, set()
        self.registered = set()
        self.branches = {}
        if settings.pod_eni:
            with LIMITS.open() as file:
                table = csv.DictReader(file)
                self.branches = {r["instance-type"]: int(r["branches"]) for r in table}
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.fetch = lambda: json.load(
            direct.open(f"{settings.aws}/_local/instances", timeout=30)
        )

    def recall(self):
        """The Nodes that are there already, for a joiner that was started anew."""
        for item in self.api.call("GET", "/api/v1/nodes")["items"]:
            provider = item["spec"].get("providerID", "")
            if provider.startswith("aws:///"):
                self.joined[provider.rsplit("/", 1)[1]] = item["metadata"]["name"]

    def step(self):
        present = {i["id"]: i for i in self.fetch()}
        now = time.monotonic()
        for iid, instance in present.items():
            if instance["state"] == "running" and iid not in self.joined:
                since = self.running_since.setdefault(iid, now)
                if iid not in self.refused and now - since >= self.settings.boot:
                    self.boot(instance)
        for iid in list(self.joined):
            state = present[iid]["state"] if iid in present else "terminated"
            if state in GONE:
                self.leave(iid, state)
        if self.settings.csi:
            self.register_drivers(present)

    def register_drivers(self, present):
        """Registers the CSI driver where the pod of its DaemonSet runs."""
        waiting = {name: iid for iid, name in self.joined.items() if iid not in self.registered}
        if not waiting:
            return
        selector = f"labelSelector=app%3D{CSI_DAEMON_SET}"
        for pod in self.api.items(f"/api/v1/namespaces/kube-system/pods?{selector}"):
            name = pod["spec"].get("nodeName")
            ready = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
            if name in waiting and ready.get("Ready") == "True":
                self.register_driver(name, present[waiting[name]])

    def register_driver(self, name, instance):
        node = self.api.find(f"/api/v1/nodes/{name}")
        if node is None:
            return
        try:
            self.api.call("POST", CSI_NODES, csi_node(node, instance))
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise
        # The driver takes the taint away that keeps pods off until it can serve them.
        labels = {f"topology.{CSI_DRIVER}/zone": instance["zone"]}
        taints = node["spec"].get("taints", [])
        kept = [t for t in taints if t["key"] != f"{CSI_DRIVER}/agent-not-ready"]
        patch = {"metadata": {"labels": labels}}
        if kept != taints:
            patch["metadata"]["resourceVersion"] = node["metadata"]["resourceVersion"]
            patch["spec"] = {"taints": kept}
        self.api.patch(f"/api/v1/nodes/{name}", patch)
        self.registered.add(instance["id"])
        say("registered the CSI driver", node=name)

    def boot(self, instance):
        iid = instance["id"]
        try:
            kubelet = userdata.read(instance["user-data"], instance["image-name"])
            self.check(instance, kubelet)
            node = nodes.build(instance, kubelet, self.branches.get(instance["instance-type"], 0))
        except (userdata.Refused, ValueError) as error:
            self.refused.add(iid)
            say("does not join", instance=iid, image=instance["image-name"], why=str(error))
            return
        try:
            self.api.call("POST", "/api/v1/nodes", node)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if error.code != 409:
                say("cannot register yet", instance=iid, status=error.code, answer=text[:300])
                return
            say("a node of this name is there already", node=node["metadata"]["name"])
        self.joined[iid] = node["metadata"]["name"]
        say(
            "joined",
            instance=iid,
            node=node["metadata"]["name"],
            allocatable=json.dumps(node["status"]["allocatable"]),
        )

    def check(self, instance, kubelet):
        """What keeps a real instance from joining."""
        if kubelet.cluster != self.settings.cluster:
            raise userdata.Refused(f"the cluster is not {kubelet.cluster!r}")
        if kubelet.endpoint.rstrip("/") != self.api.server.rstrip("/"):
            raise userdata.Refused(f"no API server at {kubelet.endpoint!r}")
        try:
            ca = base64.b64decode(kubelet.ca, validate=True).strip()
        except ValueError as error:
            raise userdata.Refused("the CA is not base64") from error
        if ca != base64.b64decode(self.api.ca).strip():
            raise userdata.Refused("the API server's certificate is not signed by the given CA")
        if not instance["role"]:
            raise userdata.Refused("the instance profile gives no role to authenticate with")
        if not instance["security-groups"]:
            raise userdata.Refused("there is no security group")

    def leave(self, iid, state):
        name = self.joined[iid]
        try:
            node = self.api.call("GET", f"/api/v1/nodes/{name}")
            mine = node["spec"].get("providerID", "").endswith("/" + iid)
            if mine and state == "shutting-down":
                return
            if mine and "deletionTimestamp" not in node["metadata"]:
                self.api.call("DELETE", f"/api/v1/nodes/{name}")
                say("deleted the node of a lost instance", instance=iid, node=name)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
        del self.joined[iid]
        self.registered.discard(iid)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aws", required=True, help="endpoint of the local AWS")
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--cluster", default="weasel-eks")
    parser.add_argument("--boot", type=float, default=1, help="seconds from running to the Node")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between looks")
    parser.add_argument("--pod-eni", action="store_true", help="Nodes have branch interfaces")
    parser.add_argument("--csi", action="store_true", help="register a CSI driver on Nodes")
    settings = parser.parse_args()
    joiner = Joiner(Api(settings.kubeconfig), settings)
    recalled = False
    while True:
        try:
            if not recalled:
                joiner.recall()
                recalled = True
                say("ready")
            joiner.step()
        except (OSError, ValueError) as error:
            say("will try again", error=repr(error))
        time.sleep(settings.every)


if __name__ == "__main__":
    sys.exit(main())
