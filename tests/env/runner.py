#!/usr/bin/env python3
"""Runs a binary as the pods of the Deployment `karpenter` would.

Each running pod of the Deployment has a process with the environment of its container, so that a
change of the Deployment rolls a controller as it does in a cluster. A pod is Ready once its
process says so, and its process is asked to stop when the pod is deleted.
"""

import argparse
import os
import pathlib
import socket
import sys
import time
import urllib.error
import urllib.request

from cluster import processes
from cluster.objects import CONTROLLER, CONTROLLER_NAMESPACE
from kube import Api

PODS = f"/api/v1/namespaces/{CONTROLLER_NAMESPACE}/pods"
SELECTOR = f"labelSelector=app.kubernetes.io%2Fname%3D{CONTROLLER}"
# Seconds between two looks, and until a process that ended by itself is started again.
EVERY, AGAIN = 0.5, 2


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment(pod):
    """The environment of the pod's first container, as the kubelet makes it."""
    made = {}
    for item in pod["spec"]["containers"][0].get("env", []):
        source = item.get("valueFrom", {})
        if "fieldRef" in source:
            field = source["fieldRef"]["fieldPath"]
            known = {
                "metadata.name": pod["metadata"]["name"],
                "metadata.namespace": pod["metadata"]["namespace"],
                "spec.nodeName": pod["spec"].get("nodeName", ""),
            }
            made[item["name"]] = known.get(field, "")
        elif not source:
            made[item["name"]] = item.get("value", "")
    return made


class Runner:
    """One process for each pod, by the pod's uid."""

    def __init__(self, api, settings):
        self.api, self.settings = api, settings
        self.running = {}
        lines = settings.env.read_text().splitlines()
        self.world = dict(line.split("=", 1) for line in lines if "=" in line)

    def step(self):
        pods = {p["metadata"]["uid"]: p for p in self.api.items(f"{PODS}?{SELECTOR}")}
        for uid in list(self.running):
            pod = pods.get(uid)
            if pod is None or "deletionTimestamp" in pod["metadata"]:
                self.stop(uid)
        for uid, pod in pods.items():
            wanted = pod["status"].get("phase") == "Running"
            if wanted and "deletionTimestamp" not in pod["metadata"]:
                self.keep(uid, pod)

    def keep(self, uid, pod):
        one = self.running.get(uid)
        if one and one["process"].poll() is None:
            if not one["ready"] and self.is_ready(one["health"]):
                one["ready"] = True
                self.annotate(pod, {"local-world/ready": "now"})
            return
        if one and time.monotonic() < one["began"] + AGAIN:
            return
        self.start(uid, pod)

    def start(self, uid, pod):
        ports = {n: free_port() for n in ("METRICS_PORT", "HEALTH_PROBE_PORT", "WEBHOOK_PORT")}
        name = pod["metadata"]["name"]
        env = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TMPDIR")}
        env |= self.world | environment(pod) | {k: str(v) for k, v in ports.items()}
        log = self.settings.logs / f"{name}.log"
        process = processes.start([self.settings.binary], log, env)
        health = ports["HEALTH_PROBE_PORT"]
        self.running[uid] = {
            "process": process,
            "health": health,
            "ready": False,
            "began": time.monotonic(),
        }
        named = {k.lower().replace("_", "-"): str(v) for k, v in ports.items()}
        self.annotate(pod, {f"local-world/{k}": v for k, v in named.items()})
        print(time.strftime("%H:%M:%S"), "started", name, f"pid={process.pid}", flush=True)

    def annotate(self, pod, annotations):
        path = f"{PODS}/{pod['metadata']['name']}"
        self.api.patch(path, {"metadata": {"annotations": annotations}})

    @staticmethod
    def is_ready(port):
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def stop(self, uid):
        process = self.running.pop(uid)["process"]
        processes.end([processes.record(process.pid)], 10)
        process.wait()
        print(time.strftime("%H:%M:%S"), "stopped", f"pid={process.pid}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--env", type=pathlib.Path, required=True, help="the world's environment")
    parser.add_argument("--logs", type=pathlib.Path, required=True)
    parser.add_argument("--binary", required=True)
    settings = parser.parse_args()
    runner = Runner(Api(settings.kubeconfig), settings)
    print("ready", flush=True)
    while True:
        try:
            runner.step()
        except (OSError, ValueError) as error:
            print("will try again", repr(error), flush=True)
        time.sleep(EVERY)


if __name__ == "__main__":
    sys.exit(main())
