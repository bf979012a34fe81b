#!/usr/bin/env python3
"""Checks the book: every page is in SUMMARY.md and short, every relative link leads to a file, every anchor to a heading;
every action of the IAM policies is explained, and every resource that the chart's roles name."""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BOOK = ROOT / "docs/src"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HERE = "https://github.com/karpenter-rs/karpenter/blob/main/"
# The most lines of a page, and of the README.
LONGEST, README = 250, 120


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def anchors(path):
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M), flags=re.M)
    clean = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h).lower()) for h in headings]
    return {h.strip().replace(" ", "-") for h in clean}


def wrong(path):
    """What is wrong with the links of a page."""
    for target in LINK.findall(without_code(path.read_text())):
        base = path.parent
        if target.startswith(HERE):
            target, base = target.removeprefix(HERE), ROOT
        elif re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (base / name).resolve() if name else path
        if not file.exists():
            yield f"{path.relative_to(ROOT)}: {target} does not exist"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            yield f"{path.relative_to(ROOT)}: {target} names no heading"


def too_long(path):
    lines, most = len(path.read_text().splitlines()), README if path.name == "README.md" else LONGEST
    if lines > most and (path.name == "README.md" or BOOK in path.parents):
        yield f"{path.relative_to(ROOT)}: {lines} lines, at most {most}"


def quoted(page):
    """The words of a page that stand in code quotes."""
    return set(re.findall(r"[\w./-]+", " ".join(re.findall(r"`([^`\n]*)`", (BOOK / page).read_text()))))


def unexplained_actions():
    """Actions of the policies that the page on IAM does not name."""
    names = quoted("iam.md")
    for path in sorted(ROOT.glob("deploy/iam/controller-policy-1.*.json")):
        for statement in json.loads(path.read_text())["Statement"]:
            actions = statement["Action"]
            for action in [actions] if isinstance(actions, str) else actions:
                if action.split(":")[1] not in names:
                    yield f"docs/src/iam.md does not name {action}"


def unexplained_resources():
    """Resources of the chart's roles, but for those of people, that the page on security does not name."""
    names = quoted("security.md")
    for path in sorted(ROOT.glob("charts/karpenter/templates/*role*.yaml")):
        if path.name.startswith("aggregate-"):
            continue
        for listed in re.findall(r"^ +resources: \[(.*)\]", path.read_text(), flags=re.M):
            for resource in re.findall(r'"([^"]+)"', listed):
                if resource.removesuffix("/status") not in names:
                    yield f"docs/src/security.md does not name {resource}"


def main():
    listed = {(BOOK / t).resolve() for t in LINK.findall((BOOK / "SUMMARY.md").read_text())}
    pages = sorted(BOOK.rglob("*.md"))
    problems = [f"{p.relative_to(ROOT)} is not in SUMMARY.md" for p in pages if p not in listed and p.name != "SUMMARY.md"]
    for path in [*pages, *sorted(ROOT.glob("*.md"))]:
        problems += [*wrong(path), *too_long(path)]
    problems += sorted({*unexplained_actions(), *unexplained_resources()})
    print("\n".join(problems) or f"{len(pages)} pages, every link leads somewhere")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
