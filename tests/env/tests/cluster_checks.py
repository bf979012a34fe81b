"""What the world's cluster does beyond Kubernetes: pods, nodes, answers, the controller."""

import datetime
import json
import pathlib
import subprocess
import tempfile
import time
import urllib.error

import kube

from .chain import Chain, until, world
from .harness import HERE

PODS = "/api/v1/namespaces/default/pods"
OPTIONS = ("--system", "--csi", "--pod-eni", "--proxy")


class Cluster:
    """A world with everything that `up` can add, for all checks of this module."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        fake = HERE / "tests" / "fake_controller.py"
        assert world("up", "--dir", self.folder.name, *OPTIONS, "--controller", str(fake)) == 0
        self.chain = Chain(self.folder.name)
        self.logs = pathlib.Path(self.folder.name, "logs")
        self.api = kube.Api(self.chain.env["KUBECONFIG"])
        self.proxied = kube.Api(self.chain.env["WORLD_PROXIED_KUBECONFIG"])
        # A node of an instance, which all checks look at.
        self.instance = self.chain.launch(self.chain.env["CLUSTER_NAME"])
        self.deleted = None

    def stop(self):
        assert world("down", "--dir", self.folder.name) == 0
        self.folder.cleanup()

    def node(self):
        """The instance's node, once it is there."""

        def joined():
            nodes = self.api.items("/api/v1/nodes")
            mine = [n for n in nodes if n["spec"].get("providerID", "").endswith(self.instance)]
            return mine[0] if mine else None

        return until("the node joins", joined)

    def pod(self, name, grace=0, annotations=None, labels=None, **container):
        """A pod on the system node."""
        self.api.call(
            "POST",
            PODS,
            {
                "metadata": {"name": name, "annotations": annotations, "labels": labels},
                "spec": {
                    "nodeName": "system",
                    "terminationGracePeriodSeconds": grace,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "c", "image": "i", **container}],
                },
            },
        )

    def is_ready(self, name):
        pod = self.api.call("GET", f"{PODS}/{name}")
        found = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
        return found.get("Ready")


def pods_take_the_time_that_their_hooks_and_grace_give_them(cluster):
    def hook(command):
        return {"preStop": {"exec": {"command": ["/bin/sh", "-c", command]}}}

    wanted = {
        "at-once": (0, {"grace": 20}),
        "sleep-action": (3, {"grace": 20, "lifecycle": {"preStop": {"sleep": {"seconds": 3}}}}),
        "sleep-command": (2, {"grace": 20, "lifecycle": hook("sleep 2; true")}),
        "longer-than-grace": (2, {"grace": 2, "lifecycle": hook("sleep 60")}),
        "slow": (4, {"grace": 4, "annotations": {"local-world/termination": "slow"}}),
        "so-long": (1, {"grace": 20, "annotations": {"local-world/termination": "1s"}}),
    }
    for name, (_, given) in wanted.items():
        cluster.pod(name, **given)
    until("they run", lambda: all(cluster.is_ready(n) == "True" for n in wanted))
    began, ended = time.monotonic(), {}
    for name in wanted:
        cluster.api.call("DELETE", f"{PODS}/{name}")

    def all_gone():
        there = {p["metadata"]["name"] for p in cluster.api.items(PODS)}
        for name in wanted.keys() - there:
            ended.setdefault(name, time.monotonic() - began)
        return not wanted.keys() & there

    until("they end", all_gone)
    for name, (seconds, _) in wanted.items():
        # Times of the API server are whole seconds.
        assert seconds - 1 <= ended[name] <= seconds + 2, f"{name}: {ended}"


def pods_stay_unready_as_they_are_told(cluster):
    probe = {"exec": {"command": ["false"]}}
    cluster.pod("never", annotations={"local-world/ready": "never"})
    cluster.pod("probed", readinessProbe=probe)
    cluster.pod("late", annotations={"local-world/ready": "3s"})
    began = time.monotonic()
    until("they run", lambda: all(cluster.is_ready(n) for n in ("never", "probed", "late")))
    assert cluster.is_ready("late") == "False"
    until("the late one is ready", lambda: cluster.is_ready("late") == "True")
    assert 2 <= time.monotonic() - began <= 6
    assert [cluster.is_ready(n) for n in ("never", "probed")] == ["False", "False"]
    now = {"metadata": {"annotations": {"local-world/ready": "now"}}}
    cluster.api.patch(f"{PODS}/never", now)
    until("it is told to be ready", lambda: cluster.is_ready("never") == "True")
    for name in ("never", "probed", "late"):
        cluster.api.call("DELETE", f"{PODS}/{name}")


def the_system_node_is_tainted_and_the_dns_has_its_address(cluster):
    node = cluster.api.call("GET", "/api/v1/nodes/system")
    assert [t["key"] for t in node["spec"]["taints"]] == ["CriticalAddonsOnly"]
    service = cluster.api.call("GET", "/api/v1/namespaces/kube-system/services/kube-dns")
    assert service["spec"]["clusterIP"] == "10.100.0.10"
    there = {"apiVersion": "v1", "spec": {"nodeSelector": {"local-world/system": "true"}}}
    cluster.chain.kubectl("run", "plain", "--image=i", f"--overrides={json.dumps(there)}")

    def refused():
        pod = cluster.api.call("GET", f"{PODS}/plain")
        found = [c for c in pod["status"].get("conditions", []) if c["type"] == "PodScheduled"]
        return found and "untolerated taint" in found[0].get("message", "")

    until("it is not scheduled", refused)
    cluster.api.call("DELETE", f"{PODS}/plain")


def the_environment_of_the_deployment_drives_the_controller(cluster):
    selector = "labelSelector=app.kubernetes.io%2Fname%3Dkarpenter"
    pods = f"/api/v1/namespaces/kube-system/pods?{selector}"

    def ready():
        found = [p for p in cluster.api.items(pods) if "deletionTimestamp" not in p["metadata"]]
        if len(found) != 1:
            return None
        told = {c["type"]: c["status"] for c in found[0]["status"].get("conditions", [])}
        return found[0] if told.get("Ready") == "True" else None

    def told(pod):
        log = cluster.logs / f"{pod['metadata']['name']}.log"
        return json.loads(log.read_text().splitlines()[0])

    first = until("a pod is ready", ready)
    before = told(first)
    assert before["SYSTEM_NAMESPACE"] == "kube-system" and "BATCH_MAX_DURATION" not in before
    assert before["CLUSTER_ENDPOINT"] == cluster.chain.env["CLUSTER_ENDPOINT"]
    port = first["metadata"]["annotations"]["local-world/metrics-port"]
    assert before["METRICS_PORT"] == port
    set_env = ("set", "env", "-n", "kube-system", "deployment/karpenter")
    cluster.chain.kubectl(*set_env, "BATCH_MAX_DURATION=3s")

    def another():
        pod = ready()
        return pod if pod and pod["metadata"]["uid"] != first["metadata"]["uid"] else None

    after = told(until("the deployment is rolled", another))
    assert after["BATCH_MAX_DURATION"] == "3s"
    gone = pathlib.Path(f"/proc/{before['pid']}")
    until("the first process is stopped", lambda: not gone.exists())
    scale = ("scale", "-n", "kube-system", "deployment/karpenter", "--replicas=0")
    cluster.chain.kubectl(*scale)
    gone = pathlib.Path(f"/proc/{after['pid']}")
    until("the other is stopped too", lambda: not gone.exists())


def nodes_have_a_csi_driver_and_branch_interfaces(cluster):
    name = cluster.node()["metadata"]["name"]
    path = f"/apis/storage.k8s.io/v1/csinodes/{name}"
    found = until("the driver registers", lambda: cluster.api.find(path))
    [driver] = found["spec"]["drivers"]
    assert (driver["name"], driver["nodeID"]) == ("ebs.csi.aws.com", cluster.instance)
    assert driver["allocatable"]["count"] == 26
    assert found["metadata"]["ownerReferences"][0]["name"] == name
    labelled = "topology.ebs.csi.aws.com/zone"
    until("the node has its zone", lambda: labelled in cluster.node()["metadata"]["labels"])
    # A t3 instance has no branch interfaces; an m5.large has nine.
    assert "vpc.amazonaws.com/pod-eni" not in cluster.node()["status"]["allocatable"]
    other = cluster.chain.launch(cluster.chain.env["CLUSTER_NAME"], "m5.large")

    def branches():
        for node in cluster.api.items("/api/v1/nodes"):
            if node["spec"].get("providerID", "").endswith(other):
                return node["status"]["allocatable"].get("vpc.amazonaws.com/pod-eni")
        return None

    assert until("it joins", branches) == "9"
    cluster.chain.aws.ec2.terminate_instances(InstanceIds=[other])


def answers_are_lost_and_held_back_as_chosen(cluster):
    maps = "/api/v1/namespaces/default/configmaps"
    rule = {"verb": "create", "resource": "configmaps", "name": "", "times": 1}
    proxied = cluster.proxied
    proxied.call("POST", "/_local/answers", [{**rule, "contains": "lost", "drop": True}])

    def create(name):
        began = time.monotonic()
        proxied.call("POST", maps, {"metadata": {"name": name}})
        return time.monotonic() - began

    create("heard")
    try:
        create("lost")
        heard = True
    except (OSError, urllib.error.URLError):
        heard = False
    assert not heard and cluster.api.find(f"{maps}/lost")
    [met] = proxied.call("GET", "/_local/answers")
    assert (met["met"], met["times"]) == (1, 0)
    create("lost-again")
    proxied.call("DELETE", "/_local/answers")
    proxied.call("POST", "/_local/answers", {"verb": "patch", "delay": 1.5, "after": 1})
    began = time.monotonic()
    patch = {"metadata": {"labels": {"a": "b"}}}
    proxied.patch(f"{maps}/lost", patch)
    assert time.monotonic() - began < 1
    proxied.patch(f"{maps}/lost", {"metadata": {"labels": {"a": "c"}}})
    assert time.monotonic() - began >= 1.5
    proxied.call("DELETE", "/_local/answers")
    try:
        proxied.call("POST", "/_local/answers", {"verbs": "create"})
        raise AssertionError("an unknown field was taken")
    except urllib.error.HTTPError as error:
        assert "unknown fields ['verbs']" in json.load(error)["error"]
    # A watch goes through, event by event.
    words = ["--kubeconfig", cluster.chain.env["WORLD_PROXIED_KUBECONFIG"]]
    words += ["get", "configmaps", "--watch", "-o", "name"]
    watch = subprocess.Popen(
        [cluster.chain.env["KUBECTL"], *words], stdout=subprocess.PIPE, text=True
    )
    try:
        assert "configmap/" in watch.stdout.readline()
        create("seen")
        while watch.stdout.readline() != "configmap/seen\n":
            pass
    finally:
        watch.kill()
        watch.wait()


def evictions_are_refused_by_the_api_server_itself(cluster):
    labels = {"app": "guarded"}
    cluster.pod("guarded", labels=labels)
    until("it is ready", lambda: cluster.is_ready("guarded") == "True")
    budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"

    def protect(name):
        spec = {"maxUnavailable": 0, "selector": {"matchLabels": labels}}
        cluster.api.call("POST", budgets, {"metadata": {"name": name}, "spec": spec})

    def evict():
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "guarded"}}
        try:
            cluster.api.call("POST", f"{PODS}/guarded/eviction", body)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["message"]
        return 201, ""

    protect("one")
    until("the budget is known", lambda: cluster.api.items(budgets)[0].get("status"))
    status, message = evict()
    assert status == 429 and "disruption budget" in message, message
    protect("two")
    status, message = evict()
    assert status == 500 and "more than one PodDisruptionBudget" in message, message
    for name in ("one", "two"):
        cluster.api.call("DELETE", f"{budgets}/{name}")
    assert until("it is evicted", lambda: evict()[0] == 201)


def leases_of_deleted_nodes_are_renewed(cluster):
    path = f"/api/v1/nodes/{cluster.node()['metadata']['name']}"
    cluster.api.patch(path, {"metadata": {"finalizers": ["example.com/held"]}})
    cluster.api.call("DELETE", path)
    lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/" + path[14:]
    began = datetime.datetime.now(datetime.timezone.utc)

    def renewed():
        held = cluster.api.call("GET", lease)["spec"]["renewTime"]
        at = datetime.datetime.fromisoformat(held.replace("Z", "+00:00"))
        return at > began + datetime.timedelta(seconds=10)

    until("the Lease is renewed", renewed, 40)
    node = cluster.api.call("GET", path)
    assert "deletionTimestamp" in node["metadata"]
    ready = {c["type"]: c["status"] for c in node["status"]["conditions"]}
    assert ready["Ready"] == "True"
    cluster.api.patch(path, {"metadata": {"finalizers": None}})
    cluster.chain.aws.ec2.terminate_instances(InstanceIds=[cluster.instance])


def a_node_can_be_made_older(cluster):
    node = cluster.node()["metadata"]
    path = f"/api/v1/nodes/{node['name']}"
    assert world("age", node["name"], "3600", "--dir", cluster.folder.name) == 0
    at = datetime.datetime.fromisoformat
    now = at(cluster.api.call("GET", path)["metadata"]["creationTimestamp"])
    assert at(node["creationTimestamp"]) - now == datetime.timedelta(hours=1), now


CHECKS = [
    a_node_can_be_made_older,
    the_system_node_is_tainted_and_the_dns_has_its_address,
    pods_take_the_time_that_their_hooks_and_grace_give_them,
    pods_stay_unready_as_they_are_told,
    the_environment_of_the_deployment_drives_the_controller,
    nodes_have_a_csi_driver_and_branch_interfaces,
    answers_are_lost_and_held_back_as_chosen,
    evictions_are_refused_by_the_api_server_itself,
    leases_of_deleted_nodes_are_renewed,
]
