"""A whole world: an instance with true user data joins, runs a pod and leaves; nothing is left.

`python -m tests.chain` brings a world of its own up and takes it down again.
"""

import base64
import json
import pathlib
import subprocess
import tempfile
import time

from .harness import HERE, Aws, ids

SCRIPT = """#!/bin/bash -xe
/etc/eks/bootstrap.sh '{cluster}' --apiserver-endpoint '{endpoint}' --b64-cluster-ca '{ca}' \\
--dns-cluster-ip '10.100.0.10' \\
--use-max-pods false \\
--kubelet-extra-args '--node-labels="karpenter.sh/nodepool=default,team=a" \
--register-with-taints="dedicated=a:NoSchedule" --max-pods=17'"""

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      tolerations: [{key: dedicated, operator: Exists}]
      containers: [{name: c, image: web, resources: {requests: {cpu: 100m, memory: 64Mi}}}]
"""


def until(what, done, seconds=30):
    limit = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < limit, f"{what}: not within {seconds} s"
        time.sleep(0.2)
    return found


def world(*words):
    return subprocess.run([HERE / "world", *words], check=False).returncode


class Chain:
    """One run over one world."""

    def __init__(self, folder):
        lines = pathlib.Path(folder, "env").read_text().splitlines()
        self.env = dict(line.split("=", 1) for line in lines)
        self.state = json.loads(pathlib.Path(folder, "world.json").read_text())
        self.aws = Aws.at(self.env)

    def kubectl(self, *words, text=None):
        command = [self.env["KUBECTL"], "--kubeconfig", self.env["KUBECONFIG"], *words]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        return done.stdout

    def get(self, *words):
        return json.loads(self.kubectl("get", *words, "-o", "json"))["items"]

    def launch(self, cluster, kind="t3.medium"):
        script = SCRIPT.format(
            cluster=cluster,
            endpoint=self.env["CLUSTER_ENDPOINT"],
            ca=self.env["CLUSTER_CA_BUNDLE"],
        )
        data = base64.b64encode(script.encode()).decode()
        return ids(self.aws.fleet(self.aws.template(UserData=data), [kind]))[0]

    def run(self):
        self.kubectl("apply", "-f", "-", text=DEPLOYMENT)
        stranger = self.launch("another-cluster")
        mine = self.launch(self.env["CLUSTER_NAME"])
        [node] = until("the node joins", lambda: self.get("nodes"))
        assert node["spec"]["providerID"].endswith("/" + mine), "a stranger joined"
        allocatable = node["status"]["allocatable"]
        wanted = {"cpu": "1930m", "memory": "3388300Ki", "pods": "17"}
        wanted["ephemeral-storage"] = "18242267924"
        assert wanted.items() <= allocatable.items(), allocatable
        assert node["metadata"]["labels"]["team"] == "a"
        assert any(t["key"] == "dedicated" for t in node["spec"]["taints"])
        until("the pods run", self.all_run)
        self.aws.ec2.terminate_instances(InstanceIds=[mine, stranger])
        until("the node goes", lambda: not self.get("nodes"))

    def all_run(self):
        pods = self.get("pods", "-A")
        return len(pods) == 3 and all(p["status"]["phase"] == "Running" for p in pods)


def main():
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        assert world("up", "--dir", folder) == 0
        try:
            chain = Chain(folder)
            chain.run()
            print(f"ok   the chain, {time.monotonic() - began:.1f} s")
        except BaseException:
            print(pathlib.Path(folder, "logs", "joiner.log").read_text())
            raise
        finally:
            assert world("down", "--dir", folder) == 0
        left = [
            name
            for name, one in chain.state["children"].items()
            if pathlib.Path(f"/proc/{one['pid']}").exists()
        ]
        assert not left, f"still running: {left}"
    print(f"ok   nothing is left, {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
