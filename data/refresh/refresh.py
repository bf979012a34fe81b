#!/usr/bin/env python3
"""Makes the data files of this folder anew from published packages; see ../README.md.

Needs Go, pip, and moto in a Python environment (that of tests/env has it).
"""

import collections
import csv
import gzip
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import zipfile

HERE = pathlib.Path(__file__).parent
DATA = HERE.parent
LIBCLOUD = "apache-libcloud==3.9.1"
# What a list price is taken from: the regions whose prices are alike.
BASE_REGIONS = ("us-east-1", "us-east-2", "us-west-2")
# A family without a published price costs so much more a core than the one before it.
GENERATION_STEP = 1.06
NAME = re.compile(r"(^[a-z]+)(-[0-9]+tb)?([0-9]+)(.*)\.(.*)")


def moto_types():
    import moto

    path = pathlib.Path(moto.__file__).parent / "ec2/resources/instance_types.json.gz"
    with gzip.open(path) as file:
        return json.load(file)


def libcloud_prices():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, LIBCLOUD],
            check=True,
        )
        wheel = next(pathlib.Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            prices = json.loads(archive.read("libcloud/data/pricing.json"))
    return prices["compute"]["ec2_linux"]


def interface_limits():
    run = subprocess.run(["go", "run", "."], cwd=HERE, check=True, capture_output=True)
    return json.loads(run.stdout)


# ---- branch interfaces


def branch_rule(info):
    """The rule that src/cloud/aws/instancetype/network.rs has, too."""
    name = info["InstanceType"]
    family, size = name.split(".", 1)
    if info.get("Hypervisor") == "xen" or family in ("t1", "t2", "t3", "t3a", "t4g", "u-6tb1"):
        return 0
    if family.startswith("mac"):
        return 6
    cores = info["VCpuInfo"]["DefaultVCpus"]
    if "-flex" in family:
        cores //= 2
    match = NAME.match(name)
    generation = int(match[3]) if match else 0
    small = "arm64" in info["ProcessorInfo"]["SupportedArchitectures"] or generation <= 5
    total = next(
        n
        for limit, n in (
            (1, 6),
            (2, 12),
            (4, 22),
            (8, 42),
            (16, 62),
            (32, 62 if small else 92),
            (48, 62 if small else 122),
            (10**9, 122),
        )
        if cores <= limit
    )
    interfaces = sum(c["MaximumNetworkInterfaces"] for c in info["NetworkInfo"]["NetworkCards"])
    return max(0, min(120, total - interfaces))


def branch_interfaces(types, limits):
    rows = []
    for name in sorted(limits):
        limit = limits[name]
        known = limit["BranchInterface"] if limit["IsTrunkingCompatible"] else 0
        if name not in types:
            # Types that EC2 no longer sells, or not to everybody, cannot be worked out.
            rows.append((name, known))
        elif branch_rule(types[name]) != known:
            rows.append((name, known))
    return rows


# ---- prices


def cores(info):
    return info["VCpuInfo"]["DefaultVCpus"]


def listed(cells):
    found = [cells[r] for r in BASE_REGIONS if cells.get(r)]
    return min(found) if found else None


def on_demand(types, cells):
    """Type -> (USD an hour in us-east-1, how it is known)."""
    prices = {n: (p, "listed") for n in cells if (p := listed(cells[n]))}
    a_core = collections.defaultdict(list)
    for name, (price, _) in prices.items():
        if name in types:
            a_core[name.split(".")[0]].append(price / cores(types[name]))
    a_core = {family: statistics.median(list_) for family, list_ in a_core.items()}
    # A cell that is far from its family's line was mixed up with another product.
    for name, (price, _) in list(prices.items()):
        line = a_core.get(name.split(".")[0])
        if name in types and line and not 0.5 < price / cores(types[name]) / line < 2.1:
            del prices[name]
    for name, info in types.items():
        if name in prices:
            continue
        family = name.split(".")[0]
        if family in a_core:
            prices[name] = (a_core[family] * cores(info), "scaled")
        elif not accelerated(info):
            older = predecessor(family, a_core)
            if older:
                price, steps = older
                prices[name] = (price * GENERATION_STEP**steps * cores(info), "estimated")
    return prices


def accelerated(info):
    keys = ("GpuInfo", "NeuronInfo", "InferenceAcceleratorInfo", "FpgaInfo", "MediaAcceleratorInfo")
    return any(key in info for key in keys)


def predecessor(family, a_core):
    """The price a core of the closest earlier generation of a family, and how far back it is."""
    match = re.match(r"^([a-z]+)([0-9]+)(.*)$", family)
    if not match:
        return None
    letters, generation, rest = match[1], int(match[2]), match[3]
    for candidate_rest in (rest, rest.replace("b", ""), rest.replace("n", "").replace("b", ""), rest[:1], "i"):
        for steps in range(1, 5):
            older = f"{letters}{generation - steps}{candidate_rest}"
            if older in a_core:
                return a_core[older], steps
    return None


def regions(cells):
    """How dear a region is beside us-east-1: the median over types."""
    ratios = collections.defaultdict(list)
    for cell in cells.values():
        base = listed(cell)
        for region, price in cell.items():
            if base and price and 0.5 < price / base < 3:
                ratios[region].append(price / base)
    return {
        region: statistics.median(list_) for region, list_ in ratios.items() if len(list_) >= 20
    }


# ---- files


def write(name, header, rows):
    with open(DATA / name, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    print(f"{name}: {len(rows)} rows")


def main():
    types, cells, limits = moto_types(), libcloud_prices(), interface_limits()
    write("branch-interfaces.csv", ("instance-type", "branches"), branch_interfaces(types, limits))
    prices = on_demand(types, cells)
    write(
        "on-demand-prices.csv",
        ("instance-type", "usd", "known"),
        [(n, f"{p:.5f}".rstrip("0"), how) for n, (p, how) in sorted(prices.items())],
    )
    write(
        "price-regions.csv",
        ("region", "factor"),
        [(r, f"{f:.3f}") for r, f in sorted(regions(cells).items())],
    )
    print(collections.Counter(how for _, how in prices.values()))
    print("without a price:", sorted(set(types) - set(prices)))


if __name__ == "__main__":
    main()
