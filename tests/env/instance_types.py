#!/usr/bin/env python3
"""Writes src/cli/render/instance-types.csv from the instance types that moto records of EC2.

Run with the Python of the local world: it has moto.
"""

import gzip
import json
import pathlib
import sys

import moto.ec2

ARCHITECTURES = {"x86_64": "amd64", "arm64": "arm64"}
TARGET = pathlib.Path(__file__).parents[2] / "src/cli/render/instance-types.csv"
HEAD = """\
# What `karpenter render` knows of instance types offline; written by tests/env/instance_types.py.
# Source: DescribeInstanceTypes as recorded by moto {version} (Apache-2.0).
instance-type,arch,vcpus,memory-mib,interfaces,addresses,gpus,accelerators,efa
"""


def count(info, part, devices):
    return sum(d.get("Count", 0) for d in info.get(part, {}).get(devices, []))


def row(info):
    known = [ARCHITECTURES.get(a) for a in info["ProcessorInfo"]["SupportedArchitectures"]]
    arch = next(filter(None, known), None)
    if arch is None or "hvm" not in info["SupportedVirtualizationTypes"]:
        return None
    network = info["NetworkInfo"]
    card = network["NetworkCards"][network.get("DefaultNetworkCardIndex", 0)]
    accelerators = count(info, "InferenceAcceleratorInfo", "Accelerators")
    return (
        info["InstanceType"],
        arch,
        info["VCpuInfo"]["DefaultVCpus"],
        info["MemoryInfo"]["SizeInMiB"],
        card["MaximumNetworkInterfaces"],
        network["Ipv4AddressesPerInterface"],
        count(info, "GpuInfo", "Gpus"),
        accelerators or count(info, "NeuronInfo", "NeuronDevices"),
        network.get("EfaInfo", {}).get("MaximumEfaInterfaces", 0),
    )


def main():
    source = pathlib.Path(moto.ec2.__file__).parent / "resources/instance_types.json.gz"
    with gzip.open(source) as file:
        found = json.load(file)
    infos = found if isinstance(found, list) else found.values()
    rows = sorted(filter(None, map(row, infos)))
    text = HEAD.format(version=moto.__version__)
    text += "".join(",".join(map(str, r)) + "\n" for r in rows)
    TARGET.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
