#!/usr/bin/env python3
"""What the binary is made of, from Cargo's own graph.

    dependencies.py notice [--check]   writes NOTICE, or says that it is stale
    dependencies.py licenses           prints the licence texts of all crates, each text once
    dependencies.py sbom               prints a software bill of materials (CycloneDX 1.5, JSON)

Crates count that are linked into a release's binary on Linux; those that only build or test it do not.
"""
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGETS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu")
NOTICE = ROOT / "NOTICE"
HEAD = """karpenter
Copyright The karpenter authors

Licensed under the Apache License, Version 2.0; see LICENSE.

The binary contains the following crates, each under its own licence (SPDX expression).
This list is made from Cargo.lock by deploy/image/dependencies.py.

"""


def graph(target):
    """The crates of one target, by id, and the package itself."""
    words = [os.environ.get("CARGO", "cargo"), "metadata", "--locked", "--format-version", "1", "--features", "profiling", "--filter-platform", target]
    text = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = json.loads(text)
    packages = {p["id"]: p for p in found["packages"]}
    nodes = {n["id"]: n for n in found["resolve"]["nodes"]}
    root = found["resolve"]["root"] or next(i for i, p in packages.items() if p["name"] == "karpenter")
    seen, todo = {}, [root]
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        linked = [d["pkg"] for d in nodes[at]["deps"] if any(k["kind"] is None for k in d["dep_kinds"])]
        # What a procedural macro uses runs in the compiler.
        macro = any("proc-macro" in t["kind"] for t in packages[at]["targets"])
        seen[at] = (packages[at], [] if macro else linked)
        todo += seen[at][1]
    return seen, root


def crates():
    """Name, version, licence and the rest of each foreign crate, sorted."""
    found = {}
    for target in TARGETS:
        seen, _ = graph(target)
        for package, _ in seen.values():
            if package["source"]:
                found[package["name"], package["version"]] = package
    return [found[key] for key in sorted(found)]


def license_of(package):
    # An old way to write a choice.
    return (package["license"] or "see its files").replace(" / ", " OR ").replace("/", " OR ")


def files(package, *words):
    folder = pathlib.Path(package["manifest_path"]).parent
    named = [f for f in sorted(folder.iterdir()) if f.is_file() and f.name.upper().startswith(words)]
    return [f for f in named if f.suffix.lower() in ("", ".md", ".txt", ".mit", ".apache")]


def notice():
    lines = [f"{p['name']} {p['version']}: {license_of(p)}\n" for p in crates()]
    texts = []
    for package in crates():
        for file in files(package, "NOTICE"):
            text = file.read_text(errors="replace").strip()
            texts.append(f"\n-- {package['name']} {package['version']}: {file.name}\n\n{text}\n")
    return HEAD + "".join(lines) + "".join(texts)


def licenses():
    users, texts = {}, {}
    for package in crates():
        for file in files(package, "LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "UNLICENSE"):
            text = file.read_text(errors="replace").strip()
            key = hashlib.sha256("".join(text.split()).encode()).hexdigest()
            texts.setdefault(key, text)
            users.setdefault(key, []).append(f"{package['name']} {package['version']}")
    parts = [f"{', '.join(dict.fromkeys(users[k]))}\n\n{texts[k]}\n" for k in texts]
    return ("\n" + "=" * 80 + "\n").join(parts)


def component(package):
    name, version = package["name"], package["version"]
    entry = {"type": "library", "bom-ref": f"pkg:cargo/{name}@{version}", "name": name, "version": version,
             "purl": f"pkg:cargo/{name}@{version}", "licenses": [{"expression": license_of(package)}]}
    if package["repository"]:
        entry["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return entry


def sbom(target=TARGETS[0], more=()):
    """The bill of materials of the binary of a target; `more` are components beside the crates."""
    seen, root = graph(target)
    reference = {i: component(p)["bom-ref"] for i, (p, _) in seen.items()}
    parts = sorted((component(p) for i, (p, _) in seen.items() if i != root), key=lambda c: c["bom-ref"])
    dependencies = [{"ref": reference[i], "dependsOn": sorted(reference[d] for d in linked)} for i, (_, linked) in seen.items()]
    document = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
                "metadata": {"component": {**component(seen[root][0]), "type": "application"}},
                "components": parts + list(more), "dependencies": sorted(dependencies, key=lambda d: d["ref"])}
    # The serial number follows from the content, so that equal builds have equal documents.
    serial = uuid.UUID(bytes=hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()[:16], version=4)
    return {**document, "serialNumber": f"urn:uuid:{serial}"}


def main(words):
    match words:
        case ["notice"]:
            NOTICE.write_text(notice())
        case ["notice", "--check"]:
            if not NOTICE.exists() or NOTICE.read_text() != notice():
                sys.exit("NOTICE is stale: run make notice")
        case ["licenses"]:
            print(licenses())
        case ["sbom"]:
            print(json.dumps(sbom(), indent=1))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
