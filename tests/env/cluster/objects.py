"""What `up` puts into the cluster when it is asked to."""

SYSTEM_NODE = "system"
SYSTEM_LABEL = "local-world/system"
CONTROLLER, CONTROLLER_NAMESPACE = "karpenter", "kube-system"
DNS_ADDRESS = "10.100.0.10"
CSI_DRIVER, CSI_DAEMON_SET = "ebs.csi.aws.com", "ebs-csi-node"
CORE = "/api/v1/namespaces/kube-system"
APPS = "/apis/apps/v1/namespaces/kube-system"


def system():
    """(path, object) of a node that Karpenter has nothing to do with, and of the cluster's DNS."""
    resources = {"cpu": "4", "memory": "16Gi", "pods": "110", "ephemeral-storage": "50Gi"}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": SYSTEM_NODE,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {
                SYSTEM_LABEL: "true",
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": SYSTEM_NODE,
                "kubernetes.io/os": "linux",
                "node.kubernetes.io/instance-type": "m5.xlarge",
                "topology.kubernetes.io/region": "us-east-1",
                "topology.kubernetes.io/zone": "us-east-1a",
            },
        },
        "spec": {
            "providerID": "aws:///us-east-1a/i-00000000000000001",
            "taints": [{"key": "CriticalAddonsOnly", "value": "true", "effect": "NoSchedule"}],
        },
        "status": {"capacity": resources, "allocatable": resources},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "labels": {"k8s-app": "kube-dns"}},
        "spec": {
            "clusterIP": DNS_ADDRESS,
            "selector": {"k8s-app": "kube-dns"},
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ],
        },
    }
    yield "/api/v1/nodes", node
    yield f"{CORE}/services", service


def controller(replicas=1):
    """(path, object) of the Deployment that `runner.py` runs."""
    labels = {"app.kubernetes.io/name": CONTROLLER}
    own_namespace = {"fieldRef": {"fieldPath": "metadata.namespace"}}
    env = [
        {"name": "DISABLE_LEADER_ELECTION", "value": "true"},
        {"name": "SYSTEM_NAMESPACE", "valueFrom": own_namespace},
    ]
    pod = {
        "nodeSelector": {SYSTEM_LABEL: "true"},
        "tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists"}],
        "containers": [
            {
                "name": "controller",
                "image": CONTROLLER,
                "env": env,
                "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
            }
        ],
    }
    # The runner says when its process is ready.
    template = {"metadata": {"labels": labels, "annotations": {"local-world/ready": "never"}}}
    yield (
        f"{APPS}/deployments",
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": CONTROLLER, "labels": labels},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {**template, "spec": pod},
            },
        },
    )


def csi():
    """(path, object) of a CSI driver and of the DaemonSet that registers it on each node."""
    labels = {"app": CSI_DAEMON_SET}
    pod = {
        "priorityClassName": "system-node-critical",
        "tolerations": [{"operator": "Exists"}],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "containers": [
            {
                "name": "ebs-plugin",
                "image": "ebs-csi-driver",
                "resources": {"requests": {"cpu": "10m", "memory": "40Mi"}},
            }
        ],
    }
    driver = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIDriver",
        "metadata": {"name": CSI_DRIVER},
        "spec": {"attachRequired": True, "podInfoOnMount": False},
    }
    daemon_set = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": CSI_DAEMON_SET, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    yield "/apis/storage.k8s.io/v1/csidrivers", driver
    yield f"{APPS}/daemonsets", daemon_set


def csi_node(node, instance):
    """The CSINode that the kubelet writes once the driver has registered."""
    hardware = instance["hardware"]
    # A Nitro instance has 28 attachments for its volumes and interfaces; the root volume has one.
    nitro = hardware["hypervisor"] == "nitro"
    count = 28 - 1 - max(len(instance["interfaces"]), 1) if nitro else 39
    owner = {
        "apiVersion": "v1",
        "kind": "Node",
        "name": node["metadata"]["name"],
        "uid": node["metadata"]["uid"],
    }
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSINode",
        "metadata": {"name": node["metadata"]["name"], "ownerReferences": [owner]},
        "spec": {
            "drivers": [
                {
                    "name": CSI_DRIVER,
                    "nodeID": instance["id"],
                    "topologyKeys": [f"topology.{CSI_DRIVER}/zone"],
                    "allocatable": {"count": count},
                }
            ]
        },
    }
