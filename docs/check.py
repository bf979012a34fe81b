#!/usr/bin/env python3
"""Checks the book: every page is in SUMMARY.md, every relative link leads to a file, every anchor to a heading."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BOOK = ROOT / "docs/src"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HERE = "https://github.com/karpenter-rs/karpenter/blob/main/"


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


def main():
    listed = {(BOOK / t).resolve() for t in LINK.findall((BOOK / "SUMMARY.md").read_text())}
    pages = sorted(BOOK.rglob("*.md"))
    problems = [f"{p.relative_to(ROOT)} is not in SUMMARY.md" for p in pages if p not in listed and p.name != "SUMMARY.md"]
    for path in [*pages, *sorted(ROOT.glob("*.md"))]:
        problems += wrong(path)
    print("\n".join(problems) or f"{len(pages)} pages, every link leads somewhere")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
