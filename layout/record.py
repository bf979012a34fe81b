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


def defined(karpenter):
    """Names of the functions in the binary itself, and not in the libraries that it loads."""
    lines = subprocess.run(["nm", karpenter], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return {name for _, kind, name in (line.rsplit(maxsplit=2) for line in lines if len(line.split()) == 3) if kind in "tTwW"}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--karpenter", required=True, help="a release binary with its symbols")
    parser.add_argument("--out", required=True)
    parser.add_argument("scenarios", nargs="+")
    options = parser.parse_args()
    names, known = {}, defined(options.karpenter)
    for scenario in options.scenarios:
        for form in ("json", "table"):
            found = called(options.karpenter, ["simulate", "--scenario", scenario, "--output", form])
            names.update(dict.fromkeys(name for name in found if name in known))
    pathlib.Path(options.out).write_text(HEAD + "".join(f"{name}\n" for name in names), encoding="utf-8")
    print(f"{len(names)} functions")


main()
