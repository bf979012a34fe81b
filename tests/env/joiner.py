#!/usr/bin/env python3
"""Stands for the boot of every instance, and for the cloud controller manager.

An instance that runs is given a Node if its user data would make its image join this cluster;
the Node of an instance that is gone is deleted.
"""

import argparse
import base64
import json
import pathlib
import ssl
import sys
import time
import urllib.error
import urllib.request

import yaml

from boot import node as nodes
from boot import userdata

GONE = ("shutting-down", "terminated")


def say(what, **more):
    stamp = time.strftime("%H:%M:%S")
    print(stamp, what, *(f"{k}={v}" for k, v in more.items()), flush=True)


class Api:
    """Just enough of a Kubernetes client."""

    def __init__(self, kubeconfig):
        config = yaml.safe_load(pathlib.Path(kubeconfig).read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server, self.token = cluster["server"], user["token"]
        self.ca = cluster["certificate-authority-data"]
        trust = ssl.create_default_context(cadata=base64.b64decode(self.ca).decode())
        self.open = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
        ).open

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.server + path, data, headers, method=method)
        with self.open(request, timeout=30) as answer:
            return json.load(answer)


class Joiner:
    """Knows which instances have booted, and as which Node."""

    def __init__(self, api, settings):
        self.api, self.settings = api, settings
        self.running_since, self.joined, self.refused = {}, {}, set()
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

    def boot(self, instance):
        iid = instance["id"]
        try:
            kubelet = userdata.read(instance["user-data"], instance["image-name"])
            self.check(instance, kubelet)
            node = nodes.build(instance, kubelet)
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aws", required=True, help="endpoint of the local AWS")
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--cluster", default="weasel-eks")
    parser.add_argument("--boot", type=float, default=1, help="seconds from running to the Node")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between looks")
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
