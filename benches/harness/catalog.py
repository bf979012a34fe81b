"""Instance types: a plain linear family, and EC2's list as the moto package has it.

EC2's prices are a formula here (see `hourly`), plausible and not more: what counts is that both
schedulers read the same ones.
"""

import functools
import gzip
import json
import math
import pathlib
import random
import re
import sysconfig

from .objects import ARCH, MI, OS, quantity, requirement

AWS = "karpenter.k8s.aws/"
ZONE_ID = "topology.k8s.aws/zone-id"
REGION = "us-east-1"
ZONES = {f"{REGION}{letter}": f"use1-az{number}" for letter, number in (("a", 1), ("b", 2), ("c", 3))}

# Labels that only reserved capacity has.
RESERVATION = [AWS + "capacity-reservation-id", AWS + "capacity-reservation-type",
               AWS + "capacity-reservation-interruptible"]

# US dollars an hour for one accelerator.
ACCELERATOR = {"K80": 0.5, "M60": 0.5, "T4": 0.35, "T4g": 0.3, "V100": 2.2, "A10G": 0.8, "L4": 0.6, "L40S": 1.2,
               "A100": 2.8, "H100": 6.0, "H200": 7.0, "B200": 10.0}

SHAPE_LABELS = ["category", "family", "generation", "size", "cpu", "memory", "cpu-manufacturer",
                "cpu-sustained-clock-speed-mhz", "ebs-bandwidth", "network-bandwidth", "hypervisor",
                "encryption-in-transit-supported", "nitro-enclaves-supported", "local-nvme", "gpu-name",
                "gpu-manufacturer", "gpu-count", "gpu-memory", "accelerator-name", "accelerator-manufacturer",
                "accelerator-count", "capability-flex", "tenancy"]
WELL_KNOWN = [f"{AWS}instance-{label}" for label in SHAPE_LABELS] + [
    ZONE_ID, "node.kubernetes.io/windows-build", *RESERVATION]


def linear(count):
    """Type i has i cores, 2i GiB and 10i pods, at a price in proportion."""
    zones = ["test-zone-1", "test-zone-2", "test-zone-3"]
    types = []
    for cores in range(1, count + 1):
        price = round(0.1 * cores + 0.1 * 2 * cores * 1.073741824, 9)
        large = cores > 4
        offerings = [(zone, "on-demand") for zone in zones] + [(zone, "spot") for zone in zones[:2]]
        types.append({
            "name": f"linear-{cores}",
            "requirements": [
                requirement(ARCH, "In", "amd64"), requirement(OS, "In", "linux", "windows"),
                requirement("example.com/size", "In", "large" if large else "small"),
                requirement("example.com/special", "In", "yes") if large
                else requirement("example.com/special", "DoesNotExist"),
                requirement("example.com/cores", "In", cores)],
            "capacity": {"cpu": str(cores), "memory": f"{2 * cores}Gi", "pods": str(10 * cores)},
            "overhead": {"cpu": "100m", "memory": "10Mi"},
            "offerings": [{"zone": zone, "capacityType": kind, "price": price, "available": True}
                          for zone, kind in offerings],
        })
    return types


LINEAR_WELL_KNOWN = ["example.com/size", "example.com/special", "example.com/cores"]


def hourly(raw):
    """An on-demand price from cores, memory, processor, network, age, disks and accelerators."""
    family = raw["InstanceType"].split(".")[0]
    match = re.match(r"^[a-z-]+?(\d+)([a-z]*)", family)
    generation, suffix = (int(match.group(1)), match.group(2)) if match else (5, "")
    price = 0.037 * raw["VCpuInfo"]["DefaultVCpus"] + 0.003 * raw["MemoryInfo"]["SizeInMiB"] / 1024
    processor = raw["ProcessorInfo"]
    price *= 0.8 if "arm64" in processor["SupportedArchitectures"] else 1
    price *= 0.9 if processor.get("Manufacturer") == "AMD" else 1
    price *= 0.8 if raw.get("BurstablePerformanceSupported") else 1
    price *= 1.15 if "n" in suffix else 1
    price *= max(0.9, 1 + 0.02 * (min(generation, 9) - 5))
    price += 0.0001 * (raw.get("InstanceStorageInfo") or {}).get("TotalSizeInGB", 0)
    for gpu in (raw.get("GpuInfo") or {}).get("Gpus", []):
        price += ACCELERATOR.get(gpu.get("Name"), 1.0) * gpu.get("Count", 1)
    for kind, listed in (("InferenceAcceleratorInfo", "Accelerators"), ("NeuronInfo", "NeuronDevices")):
        price += 0.5 * sum(a.get("Count", 1) for a in (raw.get(kind) or {}).get(listed, []))
    return round(price, 5)


def reserved_cpu(cores):
    """What the kubelet keeps, in thousandths: 6 % of the first core, 1 % of the second, and less of the rest."""
    kept, steps = 0, ((1, 60), (1, 10), (2, 5), (1 << 30, 2.5))
    for size, rate in steps:
        kept += min(cores, size) * rate
        cores = max(0, cores - size)
    return int(kept)


def shape_labels(raw):
    """The provider's labels of an instance type; nothing for those that it does not have."""
    family, size = raw["InstanceType"].split(".", 1)
    network, processor = raw["NetworkInfo"], raw["ProcessorInfo"]
    card = network["NetworkCards"][network["DefaultNetworkCardIndex"]]
    labels = {
        "family": family, "size": size, "cpu": raw["VCpuInfo"]["DefaultVCpus"],
        "memory": raw["MemoryInfo"]["SizeInMiB"], "hypervisor": raw.get("Hypervisor"),
        "cpu-manufacturer": (processor.get("Manufacturer") or "").lower(),
        "encryption-in-transit-supported": str(network.get("EncryptionInTransitSupported", False)).lower(),
        "nitro-enclaves-supported": str(raw.get("NitroEnclavesSupport") == "supported").lower(),
        "ebs-bandwidth": ((raw.get("EbsInfo") or {}).get("EbsOptimizedInfo") or {}).get("MaximumBandwidthInMbps"),
        "network-bandwidth": int((card.get("BaselineBandwidthInGbps") or 0) * 1000),
        "local-nvme": (raw.get("InstanceStorageInfo") or {}).get("TotalSizeInGB"),
        "cpu-sustained-clock-speed-mhz": int((processor.get("SustainedClockSpeedInGhz") or 0) * 1000),
        "capability-flex": str("flex" in family).lower(),
    }
    match = re.match(r"^([a-z]+)(?:-\d+tb|(\d+))", family)
    if match:
        labels["category"], labels["generation"] = match.group(1), match.group(2)
    for gpu in (raw.get("GpuInfo") or {}).get("Gpus", [])[:1]:
        labels.update({
            "gpu-name": gpu["Name"].lower().replace(" ", "-"), "gpu-manufacturer": gpu["Manufacturer"].lower(),
            "gpu-count": gpu.get("Count"), "gpu-memory": (gpu.get("MemoryInfo") or {}).get("SizeInMiB")})
    return {key: str(value) for key, value in labels.items() if value not in (None, "", 0)}


def ec2_type(raw, zones, seed):
    network = raw["NetworkInfo"]
    card = network["NetworkCards"][network["DefaultNetworkCardIndex"]]
    arch = "arm64" if "arm64" in raw["ProcessorInfo"]["SupportedArchitectures"] else "amd64"
    pods = card["MaximumNetworkInterfaces"] * (network["Ipv4AddressesPerInterface"] - 1) + 2
    memory = raw["MemoryInfo"]["SizeInMiB"] - (64 if arch == "arm64" else 0)
    memory -= math.ceil(memory * 0.075)
    cores = raw["VCpuInfo"]["DefaultVCpus"]
    labels = shape_labels(raw)
    capacity = {"cpu": str(cores), "memory": f"{memory}Mi", "ephemeral-storage": "20Gi", "pods": str(pods)}
    if labels.get("gpu-manufacturer") == "nvidia" and "gpu-count" in labels:
        capacity["nvidia.com/gpu"] = labels["gpu-count"]
    absent = [requirement(key, "DoesNotExist") for key in RESERVATION]
    requirements = [requirement(ARCH, "In", arch), requirement(OS, "In", "linux"),
                    requirement("topology.kubernetes.io/region", "In", REGION),
                    requirement(ZONE_ID, "In", *(ZONES[z] for z in zones)),
                    requirement("node.kubernetes.io/windows-build", "DoesNotExist"), *absent]
    for label in SHAPE_LABELS:
        key = f"{AWS}instance-{label}"
        if label == "tenancy":
            requirements.append(requirement(key, "In", "dedicated", "default"))
        elif label in labels:
            requirements.append(requirement(key, "In", labels[label]))
        else:
            requirements.append(requirement(key, "DoesNotExist"))
    price, offerings = hourly(raw), []
    for zone in zones:
        for kind in ("on-demand", "spot"):
            if kind not in raw.get("SupportedUsageClasses", []):
                continue
            chance = random.Random(f"{seed}/{raw['InstanceType']}/{zone}/{kind}")
            asked = price if kind == "on-demand" else round(price * chance.uniform(0.30, 0.55), 5)
            offerings.append({"zone": zone, "capacityType": kind, "price": asked,
                              "available": kind == "on-demand" or chance.random() > 0.03,
                              "labels": {ZONE_ID: ZONES[zone]}, "requirements": absent})
    return {"name": raw["InstanceType"], "requirements": requirements, "capacity": capacity,
            "overhead": {"cpu": f"{reserved_cpu(cores)}m", "memory": f"{11 * pods + 355}Mi", "ephemeral-storage": "3Gi"},
            "offerings": offerings}


@functools.cache
def moto_data(name):
    folder = pathlib.Path(sysconfig.get_paths()["purelib"]) / "moto" / "ec2" / "resources"
    with gzip.open(folder / name) as file:
        return json.load(file)


def ec2(seed):
    """Every EC2 type of the region that Linux nodes can use, in three zones, spot and on demand."""
    where = {}
    for offer in moto_data(f"instance_type_offerings/availability-zone/{REGION}.json.gz"):
        where.setdefault(offer["InstanceType"], set()).add(offer["Location"])
    types = []
    for name, raw in sorted(moto_data("instance_types.json.gz").items()):
        mac = any(a.endswith("_mac") for a in raw["ProcessorInfo"]["SupportedArchitectures"])
        zones = [zone for zone in ZONES if zone in where.get(name, ())]
        if zones and not mac and "hvm" in raw.get("SupportedVirtualizationTypes", []):
            made = ec2_type(raw, zones, seed)
            if made["offerings"]:
                types.append(made)
    return types


def allocatable(instance_type):
    """What a type leaves to pods, as numbers."""
    left = {name: quantity(amount) for name, amount in instance_type["capacity"].items()}
    for name, amount in instance_type["overhead"].items():
        left[name] = left.get(name, 0) - quantity(amount)
    return left


def as_quantities(amounts):
    """Numbers as quantities that nodes state."""
    texts = {}
    for name, amount in amounts.items():
        if name == "cpu":
            texts[name] = f"{round(amount * 1000)}m"
        elif name in ("memory", "ephemeral-storage"):
            texts[name] = f"{int(amount // MI)}Mi"
        else:
            texts[name] = str(int(amount))
    return texts
