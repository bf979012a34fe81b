#!/usr/bin/env python3
"""Writes the catalog that tests run over, tests/data/; run with a Python that has moto.

instance-types.json.gz has the fields of DescribeInstanceTypes that the provider reads, in the API's
shape, so that `karpenter instance-types --aws-instance-types` reads it as it reads the AWS CLI's
output. network-limits.csv is what the VPC resource controller says of the same types: a second
opinion on pods and branch interfaces.
"""

import csv
import gzip
import json
import pathlib

from refresh import interface_limits, moto_types

OUT = pathlib.Path(__file__).parents[2] / "tests/data"
WANTED = {
    "InstanceType": True,
    "BareMetal": True,
    "Hypervisor": True,
    "SupportedUsageClasses": True,
    "VCpuInfo": {"DefaultVCpus": True},
    "MemoryInfo": {"SizeInMiB": True},
    "ProcessorInfo": {
        "Manufacturer": True,
        "SupportedArchitectures": True,
        "SustainedClockSpeedInGhz": True,
        "SupportedFeatures": True,
    },
    "EbsInfo": {"EbsOptimizedSupport": True, "EbsOptimizedInfo": {"MaximumBandwidthInMbps": True}},
    "InstanceStorageInfo": {"TotalSizeInGB": True, "NvmeSupport": True},
    "GpuInfo": {
        "Gpus": {"Name": True, "Manufacturer": True, "Count": True, "MemoryInfo": True},
    },
    "InferenceAcceleratorInfo": {
        "Accelerators": {"Name": True, "Manufacturer": True, "Count": True},
    },
    "NeuronInfo": {
        "NeuronDevices": {"Name": True, "Count": True, "CoreInfo": {"Count": True}},
    },
    "NitroEnclavesSupport": True,
    "PlacementGroupInfo": {"SupportedStrategies": True},
    "NetworkInfo": {
        "DefaultNetworkCardIndex": True,
        "Ipv4AddressesPerInterface": True,
        "EncryptionInTransitSupported": True,
        "EnaSupport": True,
        "EfaInfo": {"MaximumEfaInterfaces": True},
        "NetworkPerformance": True,
        "NetworkCards": {
            "NetworkCardIndex": True,
            "MaximumNetworkInterfaces": True,
            "BaselineBandwidthInGbps": True,
        },
    },
}


def keep(value, wanted):
    if isinstance(value, list) and wanted is not True:
        return [keep(v, wanted) for v in value]
    if wanted is True or not isinstance(value, dict):
        return value
    return {k: keep(value[k], w) for k, w in wanted.items() if k in value}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    types = [keep(info, WANTED) for _, info in sorted(moto_types().items())]
    lines = ",\n".join(json.dumps(t, separators=(",", ":")) for t in types)
    text = f'{{"InstanceTypes":[\n{lines}\n]}}\n'
    # Without a time in it, the same catalog gives the same bytes.
    (OUT / "instance-types.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    names = {t["InstanceType"] for t in types}
    with open(OUT / "network-limits.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("instance-type", "interfaces", "addresses", "branches"))
        for name, limit in sorted(interface_limits().items()):
            if name not in names:
                continue
            card = limit["NetworkCards"][limit["DefaultNetworkCardIndex"]]
            branches = limit["BranchInterface"] if limit["IsTrunkingCompatible"] else 0
            addresses = limit["IPv4PerInterface"]
            writer.writerow((name, card["MaximumNetworkInterfaces"], addresses, branches))
    print(f"{len(types)} types")


if __name__ == "__main__":
    main()
