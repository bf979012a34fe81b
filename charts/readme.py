#!/usr/bin/env python3
"""Writes charts/karpenter/README.md from the chart's schema and default values; --check only compares.

Names, types and descriptions come from values.schema.json, defaults from values.yaml.
"""
import json
import pathlib
import sys

CHART = pathlib.Path(__file__).parent / "karpenter"
README = CHART / "README.md"
HEAD = """# karpenter

The controller as a Helm chart. Install the `karpenter-crd` chart first; see the [installation page](../../docs/src/install.md).

```
helm upgrade --install karpenter-crd charts/karpenter-crd --namespace kube-system
helm upgrade --install karpenter charts/karpenter --namespace kube-system --set settings.clusterName=CLUSTER
```

Unknown values fail with the nearest name, and mistyped ones with the type that was expected. This page is made from
`values.schema.json` and `values.yaml` by `charts/readme.py`.

| Value | Type | Default | |
|---|---|---|---|
"""


def defaults(text):
    """The default of each path, as values.yaml writes it; blocks of several lines are marked."""
    found, stack = {}, []
    lines = [l for l in text.splitlines() if l.strip() and not l.lstrip().startswith("#")]
    for at, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        while stack and stack[-1][0] >= indent:
            stack.pop()
        key, separator, value = line.strip().partition(":")
        if not separator or line.lstrip().startswith("-"):
            continue
        stack.append((indent, key.strip("'\"")))
        path = ".".join(name for _, name in stack)
        following = lines[at + 1] if at + 1 < len(lines) else ""
        deeper = len(following) - len(following.lstrip()) > indent or following.lstrip().startswith("- ")
        found[path] = value.strip() or ("see `values.yaml`" if deeper else "null")
    return found


def rows(schema, known, path=""):
    for name, value in schema.get("properties", {}).items():
        full = path + name
        if "properties" in value:
            yield from rows(value, known, full + ".")
            continue
        kinds = value.get("type", "any")
        kinds = [kinds] if isinstance(kinds, str) else [k for k in kinds if k != "null"]
        default = known.get(full, "")
        if default and not default.startswith("see "):
            default = f"`{default}`"
        description = value.get("description", "")
        choices = [c for c in value.get("enum", []) if c is not None]
        if choices:
            description += " One of " + ", ".join(f"`{c}`" for c in choices) + "."
        cells = [f"`{full}`", ", ".join(kinds), default, description]
        yield "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"


def main():
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = defaults((CHART / "values.yaml").read_text())
    text = HEAD + "\n".join(rows(schema, known)) + "\n"
    if "--check" not in sys.argv:
        README.write_text(text)
    elif not README.exists() or README.read_text() != text:
        sys.exit("charts/karpenter/README.md is stale: run charts/readme.py")


main()
