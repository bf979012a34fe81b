#!/usr/bin/env python3
"""Makes ../devices.tsv from the tables of Karpenter's EC2 provider, as published; needs Go to fetch them."""

import json
import pathlib
import re
import subprocess
import tempfile
import zipfile

MODULE = "github.com/aws/karpenter-provider-aws@v1.15.2"
DATA = pathlib.Path(__file__).parent.parent
ROOT = "resource.kubernetes.io/pcieRoot"
HEAD = "# Devices of instance types as their DRA drivers publish them: driver, type, PCIe roots of alike devices, memory, attributes\n"
DRIVERS = {"gpu.nvidia.com": "gpu", "dra.net": "efa"}
ATTRIBUTE = re.compile(r'"([^"]+)":\s*\{(String|Version|Int|Bool)Value: \w+\((.*?)\)\},')
MEMORY = re.compile(r'"memory":\s*\{Value: resource\.MustParse\("(.*?)"\)\}')


def archive():
    """The published module. Go fetches it, also one that asks for a newer Go."""
    words = ["go", "mod", "download", "-json", MODULE]
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(words, cwd=folder, check=False, capture_output=True, text=True)
    return zipfile.ZipFile(json.loads(run.stdout)["Zip"])


def devices(text):
    """Type -> one (roots, memory, attributes) for each run of devices that differ in nothing else."""
    found = {}
    for entry in re.split(r'\n\t"', text)[1:]:
        name, body = entry.split('"', 1)
        rows = found.setdefault(name, [])
        for device in re.split(r"\n\t\t\t\{\n", body)[1:]:
            listed = {key: (kind.lower(), value.strip('"')) for key, kind, value in ATTRIBUTE.findall(device)}
            root = listed.pop(ROOT, (None, "-"))[1]
            memory = MEMORY.search(device)
            rest = "|".join(f"{key}={kind}:{value}" for key, (kind, value) in sorted(listed.items()))
            row = (memory.group(1) if memory else "", rest)
            if rows and rows[-1][1:] == row:
                rows[-1][0].append(root)
            else:
                rows.append(([root], *row))
    return found


def main():
    module, lines = archive(), []
    for driver, table in DRIVERS.items():
        name = f"{MODULE}/pkg/providers/drametadata/zz_generated_{table}_metadata.go"
        text = module.read(name).decode()
        for name, rows in sorted(devices(text).items()):
            lines += ["\t".join((driver, name, " ".join(roots), memory, rest)) for roots, memory, rest in rows]
    (DATA / "devices.tsv").write_text(HEAD + "".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
