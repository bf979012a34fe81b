"""Holds a world: starts its parts, watches them and who it is for, and ends them all."""

import json
import os
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request

import kube

from . import certs, components, objects, processes

# Seconds that a part may take until it is ready; a busy machine needs some.
PATIENCE = 120


class Failed(Exception):
    """The world cannot be had."""


class Supervisor:
    """One world's life."""

    def __init__(self, world, settings):
        self.world, self.settings = world, settings
        self.children, self.timings = {}, {}
        self.began = time.monotonic()
        self.stopping = None
        self.watched = [r for r in (settings.watch, settings.starter) if r]
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._asked)

    def _asked(self, number, _frame):
        self.stopping = signal.Signals(number).name

    def say(self, text):
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    def run(self):
        try:
            self._up()
            self._hold()
        except Failed as error:
            self.say(f"failed: {error}")
            self._write("failed", str(error))
        finally:
            self._down()

    # ---- up

    def _start(self, name, command, cwd=None):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "KUBE"))}
        env |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        env |= {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        log = self.world.logs / f"{name}.log"
        self.children[name] = processes.start(command, log, env, cwd)
        self._write("starting")

    def _up(self):
        world = self.world
        certs.make(world.pki)
        self.ca = world.write_access()
        here = components.HERE
        self._start("etcd", world.etcd())
        self._start("aws", world.aws(), here)
        self._start("kube-apiserver", world.apiserver())
        self._wait("kube-apiserver", lambda: self._get("/readyz") is not None)
        self._start("kube-controller-manager", world.controller_manager())
        self._start("kube-scheduler", world.scheduler())
        self._start("kwok", world.kwok())
        self._wait("aws", self.world.aws_state.exists)
        self.aws = json.loads(self.world.aws_state.read_text())
        self._start("joiner", world.joiner(self.aws["endpoint"]), here)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._wait("kube-controller-manager", lambda: self._get(account) is not None)
        joiner_log = world.logs / "joiner.log"
        self._wait("joiner", lambda: "ready" in joiner_log.read_text())
        if self.settings.proxy:
            self._start("apiproxy", world.apiproxy())
            self._wait("apiproxy", world.proxied.exists)
        self._write_env()
        self._apply()
        if self.settings.controller:
            self._start("runner", world.runner(), here)
        self.timings["all"] = round(time.monotonic() - self.began, 1)
        self._write("ready")
        self.say(f"ready: {self.timings}")

    def _apply(self):
        """Makes the objects that the options ask for."""
        wanted = []
        if self.settings.system or self.settings.controller:
            wanted += objects.system()
        if self.settings.csi:
            wanted += objects.csi()
        if self.settings.controller:
            wanted += objects.controller()
        api = kube.Api(self.world.kubeconfig("admin"))
        for path, one in wanted:
            api.call("POST", path, one)

    def _wait(self, name, done):
        limit = time.monotonic() + PATIENCE
        while not done():
            self._check()
            if self.stopping:
                raise Failed(f"asked to stop ({self.stopping}) while waiting for {name}")
            if time.monotonic() > limit:
                raise Failed(f"{name} is not ready after {PATIENCE} s; see {self.world.logs}")
            time.sleep(0.1)
        self.timings[name] = round(time.monotonic() - self.began, 1)

    def _check(self):
        for name, child in self.children.items():
            if child.poll() is not None:
                log = self.world.logs / f"{name}.log"
                raise Failed(f"{name} ended with {child.returncode}; see {log}")
        for one in self.watched:
            if not processes.alive(one):
                raise Failed(f"process {one['pid']}, which this world is for, is gone")

    def _get(self, path):
        trust = ssl.create_default_context(cafile=self.world.pki / "ca.crt")
        open_url = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
        ).open
        headers = {"Authorization": f"Bearer {self.world.admin_token}"}
        request = urllib.request.Request(self.world.api + path, headers=headers)
        try:
            with open_url(request, timeout=5) as answer:
                return answer.read()
        except (OSError, urllib.error.URLError):
            return None

    def _write_env(self):
        world, aws = self.world, self.aws
        values = {
            "KUBECONFIG": world.kubeconfig("admin"),
            "KUBECTL": world.bin / "kubectl",
            "CLUSTER_NAME": components.CLUSTER,
            "CLUSTER_ENDPOINT": world.api,
            "CLUSTER_CA_BUNDLE": self.ca,
            "AWS_ENDPOINT_URL": aws["endpoint"],
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": components.REGION,
            "AWS_DEFAULT_REGION": components.REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1,localhost",
            "WORLD_DIR": world.folder,
            "WORLD_ADMIN": f"{aws['endpoint']}/_local",
            "WORLD_ETCD": world.etcd_url,
            "WORLD_QUEUE": components.CLUSTER,
            "WORLD_VPC": aws["vpc"],
            "WORLD_SUBNETS": ",".join(aws["subnets"]),
            "WORLD_SECURITY_GROUP": aws["security-group"],
            "WORLD_SECURITY_GROUPS": ",".join(aws["security-groups"]),
        }
        if self.settings.proxy:
            values["WORLD_PROXIED_KUBECONFIG"] = world.proxied
        path = world.folder / "env"
        path.write_text("".join(f"{k}={v}\n" for k, v in values.items()))
        path.chmod(0o600)
        self.env = {k: str(v) for k, v in values.items()}

    def _write(self, state, why=None):
        content = {
            "state": state,
            "why": why,
            "supervisor": processes.record(os.getpid()),
            "children": {
                name: processes.record(child.pid) for name, child in self.children.items()
            },
            "watched": self.settings.watch,
            "timings": self.timings,
            "env": getattr(self, "env", {}),
            "logs": str(self.world.logs),
        }
        path = self.world.folder / "world.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1))
        part.rename(path)

    # ---- held, and down

    def _hold(self):
        # Whoever called `up` may go now; who the world is for may not.
        self.watched = [r for r in (self.settings.watch,) if r]
        while not self.stopping:
            self._check()
            time.sleep(0.2)
        self.say(f"asked to stop: {self.stopping}")

    def _down(self):
        records = {n: processes.record(c.pid) for n, c in self.children.items()}
        order = [n for n in reversed(self.children) if n not in ("etcd", "kube-apiserver")]
        processes.end([records[n] for n in order], 3)
        for name in ("kube-apiserver", "etcd"):
            if name in records:
                # The data go with the world: there is nothing to save.
                self.children[name].kill()
        for child in self.children.values():
            try:
                child.wait(5)
            except Exception as error:  # noqa: BLE001 - end the others all the same
                self.say(f"{error}")
        self.children = {}
        path = self.world.folder / "world.json"
        content = json.loads(path.read_text()) if path.exists() else {}
        if content.get("state") != "failed":
            self._write("down")
        self.say("everything is down")


def detach(world, settings):
    """Runs a supervisor as a process of its own; gives its record."""
    log = world.logs / "world.log"
    pid = os.fork()
    if pid:
        return processes.record(pid)
    os.setsid()
    with open(log, "ab", buffering=0) as out, open(os.devnull, "rb") as none:
        os.dup2(none.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    status = 1
    try:
        Supervisor(world, settings).run()
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
