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


# ---- network interfaces


def network_limits(limits):
    """Branch interfaces, and addresses of each interface, of all types that the controller knows."""
    return [
        (n, l["BranchInterface"] if l["IsTrunkingCompatible"] else 0, l["IPv4PerInterface"])
        for n, l in sorted(limits.items())
    ]


# ---- prices


def cores(info):
    return info["VCpuInfo"]["DefaultVCpus"]


def listed(cells):
    found = [cells[r] for r in BASE_REGIONS if cells.get(r)]
    return min(found) if found else None


def published():
    """Region -> type -> price, as AWS published them; that file is not made here."""
    prices = collections.defaultdict(dict)
    with open(DATA / "on-demand-prices.csv") as file:
        for row in csv.DictReader(file):
            prices[row["region"]][row["instance-type"]] = float(row["price-an-hour"])
    return prices


def estimates(types):
    """Type -> USD an hour in us-east-1, of types that have no published price in any region."""
    known = published()
    a_core = collections.defaultdict(list)
    for name, price in known["us-east-1"].items():
        if name in types:
            a_core[name.split(".")[0]].append(price / cores(types[name]))
    a_core = {family: statistics.median(list_) for family, list_ in a_core.items()}
    prices = {}
    for name, info in types.items():
        if any(name in region for region in known.values()) or accelerated(info):
            continue
        older = predecessor(name.split(".")[0], a_core)
        if older:
            price, steps = older
            prices[name] = price * GENERATION_STEP**steps * cores(info)
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
    write("network-limits.csv", ("instance-type", "branches", "addresses"), network_limits(limits))
    prices = estimates(types)
    write(
        "estimated-prices.csv",
        ("instance-type", "usd"),
        [(n, f"{p:.5f}".rstrip("0")) for n, p in sorted(prices.items())],
    )
    write(
        "price-regions.csv",
        ("region", "factor"),
        [(r, f"{f:.3f}") for r, f in sorted(regions(cells).items())],
    )
    known = set(prices).union(*published().values())
    print("without a price:", sorted(set(types) - known))


if __name__ == "__main__":
    main()
