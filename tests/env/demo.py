"""The demo: a pending Deployment gets its node, and the node goes when the Deployment does.

`make demo` builds what is missing and runs this. KEEP=1 leaves everything running.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BINARY = ROOT / "target" / "release" / "karpenter"
EXAMPLE = ROOT / "examples" / "weasel-eks"
# Seconds that the node may take to come, and to go.
PATIENCE = 180
COLUMNS = ("time", "pods pending", "running", "nodeclaims", "nodes ready", "instances", "$/hour")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Demo:
    """One run, from nothing to nothing."""

    def __init__(self, folder):
        self.folder = folder
        self.began = time.monotonic()
        self.steps = []
        self.controller = None
        self.row = None
        self.printing = threading.Lock()

    def say(self, text=""):
        with self.printing:
            print(text, flush=True)

    def step(self, name, action, *args):
        self.say(f"\n=== {name}")
        start = time.monotonic()
        result = action(*args)
        self.steps.append((name, time.monotonic() - start))
        return result

    # ---- the parts

    def world_up(self):
        pid = str(os.getpid())
        command = [HERE / "world", "up", "--dir", self.folder]
        # With KEEP the world outlives this process.
        watch = [] if os.environ.get("KEEP") else ["--watch-pid", pid]
        subprocess.run([*command, *watch], check=True)
        lines = (self.folder / "env").read_text().splitlines()
        self.env = dict(line.split("=", 1) for line in lines)
        self.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        self.kubectl("wait", "--for=condition=Established", "crd", "--all")

    def kubectl(self, *words):
        command = [self.env["KUBECTL"], "--kubeconfig", self.env["KUBECONFIG"], *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def items(self, kind):
        return json.loads(self.kubectl("get", kind, "-A", "-o", "json"))["items"]

    def start_controller(self):
        webhook = free_port()
        settings = {
            "METRICS_PORT": str(free_port()),
            "HEALTH_PROBE_PORT": str(free_port()),
            "WEBHOOK_PORT": str(webhook),
            "WEBHOOK_URL": f"https://127.0.0.1:{webhook}",
            "LEADER_ELECTION_NAMESPACE": "kube-system",
        }
        env = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        self.log_path = self.folder / "logs" / "karpenter.log"
        # The controller writes to the file itself, so that it can outlive this process.
        with open(self.log_path, "wb") as log:
            self.controller = subprocess.Popen(
                [BINARY],
                env={**env, **self.env, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        threading.Thread(target=self.stream, daemon=True).start()
        ready = f"http://127.0.0.1:{settings['HEALTH_PROBE_PORT']}/readyz"
        self.until("the controller is ready", lambda: self.answers(ready), show=False)

    def answers(self, url):
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def stream(self):
        with open(self.log_path, encoding="utf-8") as log:
            while True:
                line = log.readline()
                if line.endswith("\n"):
                    self.say("  " + line.rstrip())
                else:
                    time.sleep(0.05)

    # ---- what is to be seen

    def counts(self):
        phases = [p["status"].get("phase") for p in self.items("pods")]
        nodes = self.items("nodes")
        ready = sum(
            any(c["type"] == "Ready" and c["status"] == "True" for c in n["status"]["conditions"])
            for n in nodes
        )
        with urllib.request.urlopen(f"{self.env['WORLD_ADMIN']}/instances") as answer:
            all_instances = json.load(answer)
        gone = ("terminated", "shutting-down")
        instances = [i for i in all_instances if i["state"] not in gone]
        return {
            "pods pending": phases.count("Pending"),
            "running": phases.count("Running"),
            "nodeclaims": len(self.items("nodeclaims.karpenter.sh")),
            "nodes ready": f"{ready}/{len(nodes)}",
            "instances": len(instances),
            "$/hour": f"{sum(float(i.get('price') or 0) for i in instances):.4f}",
        }

    def show(self, now):
        row = tuple(str(v) for v in now.values())
        if row == self.row:
            return
        if self.row is None:
            self.say("".join(f"{c:>14}" for c in COLUMNS))
        self.row = row
        passed = f"{time.monotonic() - self.began:.1f} s"
        self.say("".join(f"{v:>14}" for v in (passed, *row)))

    def until(self, what, done, show=True):
        limit = time.monotonic() + PATIENCE
        while True:
            if self.controller.poll() is not None:
                sys.exit(f"the controller ended with {self.controller.returncode}")
            now = self.counts() if show else None
            if show:
                self.show(now)
            if done(now) if show else done():
                return
            if time.monotonic() > limit:
                sys.exit(f"{what}: not within {PATIENCE} s; logs are in {self.folder / 'logs'}")
            time.sleep(0.3)

    # ---- the run

    def apply(self, name):
        limit = time.monotonic() + 30
        while True:
            try:
                return self.kubectl("apply", "-f", str(EXAMPLE / name))
            except subprocess.CalledProcessError as error:
                # The API server learns of the conversion webhook a moment after its start.
                if time.monotonic() > limit:
                    sys.exit(f"kubectl apply: {error.stderr}")
                time.sleep(0.3)

    def run(self):
        self.step("Bring up the local world: control plane, EC2, kwok, joiner", self.world_up)
        self.step("Start karpenter", self.start_controller)
        self.step("Apply the founding manifests (karpenter.sh/v1beta1)", self.apply, "manifests.yaml")
        self.apply("inflate.yaml")
        wanted = json.loads(self.kubectl("get", "deployment", "inflate", "-o", "json"))
        replicas = wanted["spec"]["replicas"] or 3
        if not wanted["spec"]["replicas"]:
            self.kubectl("scale", "deployment", "inflate", f"--replicas={replicas}")
        self.step(
            f"A Deployment of {replicas} pods: the node appears and the pods run",
            self.until,
            "the pods run",
            lambda now: now["running"] == replicas,
        )
        nodes = self.kubectl("get", "nodeclaims.karpenter.sh,nodes", "-o", "wide")
        self.say(nodes)
        self.kubectl("scale", "deployment", "inflate", "--replicas=0")
        self.step(
            "The Deployment is scaled to zero: the node goes away",
            self.until,
            "the node goes",
            lambda now: now["nodeclaims"] == now["instances"] == 0 and now["nodes ready"] == "0/0",
        )

    def down(self):
        if os.environ.get("KEEP"):
            self.say(f"\nLeft running (KEEP=1), controller {self.controller.pid}:")
            self.say(f"  set -a; . {self.folder}/env   # then kubectl, aws")
            self.say(f"  kill {self.controller.pid}; {HERE}/world down --dir {self.folder} --delete")
            return
        if self.controller:
            self.controller.send_signal(signal.SIGTERM)
            try:
                self.controller.wait(10)
            except subprocess.TimeoutExpired:
                self.controller.kill()
        quiet = {"stdout": subprocess.DEVNULL, "check": False}
        subprocess.run([HERE / "world", "down", "--dir", self.folder], **quiet)

    def summary(self):
        self.say("\n=== How long each step took")
        for name, seconds in self.steps:
            self.say(f"{seconds:8.1f} s  {name}")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="karpenter-demo-"))
    demo = Demo(folder)
    done = False
    try:
        demo.run()
        done = True
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}\n{error.stderr or ''}")
    finally:
        demo.down()
        demo.summary()
        if done and not os.environ.get("KEEP"):
            shutil.rmtree(folder)
            demo.say("Nothing is left running.")


if __name__ == "__main__":
    main()
