"""Writes functions.txt: the functions that `karpenter simulate` calls, for the linker to lay side by side.

A function that runs is in memory with the 64 KiB around it (Linux maps that much on each fault), so that a few thousand
functions scattered over a large binary cost many times their own size. Valgrind tells which ones run.
"""

import argparse
import pathlib
import re
import subprocess
import tempfile

NAMES = re.compile(r"^c?fn=(?:\(\d+\) )?(_\S+?)(?:'\d+)?$", re.MULTILINE)
HEAD = "# Functions that `karpenter simulate` calls, from layout/record.py; `make layout` writes them anew.\n"


def called(karpenter, arguments):
    """Names of the functions that one run calls, as the linker knows them."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "calls")
        tool = ["valgrind", "--quiet", "--tool=callgrind", "--demangle=no", "--compress-strings=no", f"--callgrind-out-file={out}"]
        subprocess.run([*tool, karpenter, *arguments], stdout=subprocess.DEVNULL, check=True)
        return NAMES.findall(out.read_text(encoding="utf-8"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--karpenter", required=True, help="a release binary with its symbols")
    parser.add_argument("--out", required=True)
    parser.add_argument("scenarios", nargs="+")
    options = parser.parse_args()
    names = {}
    for scenario in options.scenarios:
        for form in ("json", "table"):
            found = called(options.karpenter, ["simulate", "--scenario", scenario, "--output", form])
            names.update(dict.fromkeys(found))
    pathlib.Path(options.out).write_text(HEAD + "".join(f"{name}\n" for name in names), encoding="utf-8")
    print(f"{len(names)} functions")


main()
