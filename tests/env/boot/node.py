"""The Node that a kubelet registers, from the instance's hardware and what it was started with."""

import re
import struct

from .userdata import Refused, family

KUBELET_VERSION = "v1.35.4"
# Of a t3.medium's 4 GiB the kernel and the firmware keep 250996 KiB; others keep as large a share.
KEPT_KIB_OF_4_GIB = 250_996
# Partition table and file system of a root volume.
VOLUME_OVERHEAD_KIB = 12_308
HUGE_PAGE_BYTES = {"1Gi": 1 << 30, "2Mi": 2 << 20}
# Resources of GPUs and Gaudi accelerators, by who makes them.
GPUS = {"NVIDIA": "nvidia.com/gpu", "AMD": "amd.com/gpu", "Habana": "habana.ai/gaudi"}
LABELS_A_KUBELET_MAY_SET = frozenset(
    """kubernetes.io/hostname kubernetes.io/arch kubernetes.io/os
    beta.kubernetes.io/arch beta.kubernetes.io/os beta.kubernetes.io/instance-type
    node.kubernetes.io/instance-type topology.kubernetes.io/region topology.kubernetes.io/zone
    failure-domain.beta.kubernetes.io/region failure-domain.beta.kubernetes.io/zone""".split()
)


def build(instance, kubelet, branches=0):
    """The Node object, status included, as a kubelet creates it.

    With `branches`, as the VPC resource controller changes it once it has attached a trunk
    interface that so many branch interfaces for pods can be on.
    """
    for key in kubelet.labels:
        _check_label(key)
    windows = family(instance["image-name"]) == "windows"
    capacity, allocatable = resources(instance, kubelet, windows)
    if branches:
        for amounts in (capacity, allocatable):
            amounts["vpc.amazonaws.com/pod-eni"] = str(branches)
    name = instance["private-dns"]
    arch = "arm64" if instance["architecture"] == "arm64" else "amd64"
    system = "windows" if windows else "linux"
    labels = {
        "beta.kubernetes.io/arch": arch,
        "beta.kubernetes.io/instance-type": instance["instance-type"],
        "beta.kubernetes.io/os": system,
        "kubernetes.io/arch": arch,
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": system,
        "node.kubernetes.io/instance-type": instance["instance-type"],
        "topology.k8s.aws/zone-id": instance["zone-id"],
        "topology.kubernetes.io/region": instance["region"],
        "topology.kubernetes.io/zone": instance["zone"],
        **kubelet.labels,
    }
    if branches:
        labels["vpc.amazonaws.com/has-trunk-attached"] = "true"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "spec": {
            "providerID": f"aws:///{instance['zone']}/{instance['id']}",
            "taints": kubelet.taints,
        },
        "status": {
            "capacity": capacity,
            "allocatable": allocatable,
            "addresses": [
                {"type": "InternalIP", "address": instance["private-ip"]},
                {"type": "InternalDNS", "address": name},
                {"type": "Hostname", "address": name},
            ],
            "conditions": [
                {
                    "type": "Ready",
                    "status": "False",
                    "reason": "KubeletNotReady",
                    "message": "container runtime network not ready",
                }
            ],
            "nodeInfo": _info(instance, arch, system),
        },
    }


def _check_label(key):
    """The kubelet does not start with labels in Kubernetes' own name space, but for a few."""
    domain = key.rpartition("/")[0]
    ours = any(domain == d or domain.endswith("." + d) for d in ("kubernetes.io", "k8s.io"))
    free = any(
        domain == d or domain.endswith("." + d)
        for d in ("kubelet.kubernetes.io", "node.kubernetes.io")
    )
    if ours and not free and key not in LABELS_A_KUBELET_MAY_SET:
        raise Refused(f"unknown 'kubernetes.io' or 'k8s.io' label {key} in --node-labels")


def _info(instance, arch, system):
    images = {
        "al2": "Amazon Linux 2",
        "al2023": "Amazon Linux 2023",
        "bottlerocket": "Bottlerocket OS",
        "windows": "Windows Server",
    }
    return {
        "architecture": arch,
        "operatingSystem": system,
        "kubeletVersion": KUBELET_VERSION,
        "kubeProxyVersion": "",
        "containerRuntimeVersion": "containerd://2.1.0",
        "kernelVersion": "local",
        "osImage": images.get(family(instance["image-name"]), "custom"),
        "machineID": instance["id"],
        "systemUUID": instance["id"],
        "bootID": instance["id"],
    }


def resources(instance, kubelet, windows=False):
    """Capacity and allocatable as a kubelet computes them, in its own spelling."""
    hardware = instance["hardware"]
    cpus = hardware["vcpus"]
    memory = hardware["memory-mib"] * 1024
    memory -= memory * KEPT_KIB_OF_4_GIB // (4 << 20)
    disk = _disk_kib(instance, kubelet)
    limit = 110 if windows else hardware["enis"] * (hardware["ips-per-eni"] - 1) + 2
    pods = kubelet.max_pods if kubelet.max_pods is not None else limit
    if kubelet.pods_per_core:
        pods = min(pods, kubelet.pods_per_core * cpus)
    devices = _devices(instance)
    pages = {size: kubelet.hugepages.get(size, 0) for size in HUGE_PAGE_BYTES}
    huge = {size: pages[size] * HUGE_PAGE_BYTES[size] for size in pages}
    capacity = {
        "cpu": str(cpus),
        "memory": f"{memory}Ki",
        "ephemeral-storage": f"{disk}Ki",
        "pods": str(pods),
        "hugepages-1Gi": f"{pages['1Gi']}Gi" if pages["1Gi"] else "0",
        "hugepages-2Mi": f"{2 * pages['2Mi']}Mi" if pages["2Mi"] else "0",
        **devices,
    }
    kube = kubelet.kube_reserved
    if kube is None:
        kube = _default_reserved(cpus, limit)
    evict = kubelet.eviction_hard or {}
    evict_memory = evict.get("memory.available", "100Mi")
    evict_disk = evict.get("nodefs.available", "10%")
    held = [kube, kubelet.system_reserved]
    left_cpu = cpus * 1000 - sum(_milli(h.get("cpu", "0")) for h in held)
    left_memory = memory * 1024 - sum(_bytes(h.get("memory", "0")) for h in held)
    left_memory -= _share(evict_memory, memory * 1024) + sum(huge.values())
    left_disk = disk * 1024 - sum(_bytes(h.get("ephemeral-storage", "0")) for h in held)
    left_disk -= _share(evict_disk, disk * 1024)
    allocatable = {
        **capacity,
        "cpu": f"{max(left_cpu, 0)}m" if left_cpu % 1000 else str(left_cpu // 1000),
        "memory": f"{max(left_memory, 0) // 1024}Ki",
        "ephemeral-storage": str(max(left_disk, 0)),
    }
    return capacity, allocatable


def _default_reserved(cpus, pods):
    """What the EKS images reserve for the kubelet where nothing else is said."""
    milli = 0
    for core in range(cpus):
        milli += (60, 10, 5, 5)[core] if core < 4 else 2.5
    return {"cpu": f"{int(milli)}m", "memory": f"{11 * pods + 255}Mi", "ephemeral-storage": "1Gi"}


def _disk_kib(instance, kubelet):
    store = instance["hardware"]["instance-store-gb"]
    if kubelet.local_disks and store:
        return store * 1_000_000_000 // 1024
    volumes = {v["device"]: v["gib"] for v in instance["volumes"]}
    # Bottlerocket keeps pods on its second volume.
    device = "/dev/xvdb" if family(instance["image-name"]) == "bottlerocket" else None
    gib = volumes.get(device) or next(iter(volumes.values()), 20)
    return int(gib) * (1 << 20) - VOLUME_OVERHEAD_KIB


def _devices(instance):
    """What device plugins find on the instance: accelerators, and EFA interfaces."""
    hardware, found = instance["hardware"], {}

    def add(name, count):
        if count:
            found[name] = found.get(name, 0) + count

    for gpu in hardware["gpus"]:
        add(GPUS.get(gpu.get("Manufacturer")), int(gpu.get("Count", 1)))
    found.pop(None, None)
    for neuron in hardware["neurons"]:
        count, cores = int(neuron.get("Count", 1)), neuron.get("CoreInfo", {}).get("Count", 0)
        add("aws.amazon.com/neuron", count)
        add("aws.amazon.com/neuroncore", count * int(cores))
    kinds = [i.get("InterfaceType") for i in instance.get("interfaces", [])]
    add("vpc.amazonaws.com/efa", sum(kind in ("efa", "efa-only") for kind in kinds))
    return {name: str(count) for name, count in found.items()}


UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


def _bytes(text):
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text)
    if not found or found[2] not in UNITS:
        raise Refused(f"not a quantity: {text!r}")
    return int(float(found[1]) * UNITS[found[2]])


def _milli(text):
    return int(text[:-1]) if text.endswith("m") else int(float(text) * 1000)


def _share(text, whole):
    """A threshold: a quantity, or a share of the whole, which the kubelet computes in 32 bits."""
    if text.endswith("%"):
        share = struct.unpack("f", struct.pack("f", float(text[:-1]) / 100))[0]
        return int(whole * share)
    return _bytes(text)
