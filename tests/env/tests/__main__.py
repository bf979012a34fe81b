"""Checks of the local AWS and of the cluster: `python -m tests [NAME...]` from tests/env."""

import importlib
import sys
import time
import traceback

from .cluster_checks import Cluster
from .harness import Aws

# What the checks of some modules run on.
GROUPS = (
    ("local AWS", lambda: Aws("--pending", "0.5", "--shutting", "0.5"),
     ("boot_checks", "fleet_checks", "service_checks")),
    ("world", Cluster, ("cluster_checks",)),
)


def wanted(modules):
    """The checks of these modules that the command line asks for."""
    found = [c for m in modules for c in importlib.import_module(f".{m}", __package__).CHECKS]
    return [c for c in found if not sys.argv[1:] or c.__name__ in sys.argv[1:]]


def passes(check, subject):
    """Runs a check, and prints how it went."""
    at = time.monotonic()
    try:
        check(subject)
        verdict = "ok  "
    except Exception:  # noqa: BLE001 - every check is to be tried
        verdict = "FAIL"
        traceback.print_exc(file=sys.stdout)
    title = check.__name__.replace("_", " ")
    print(f"{verdict} {time.monotonic() - at:5.2f} s  {title}", flush=True)
    return verdict == "ok  "


def main():
    began = time.monotonic()
    passed = total = 0
    for name, start, modules in GROUPS:
        checks = wanted(modules)
        if not checks:
            continue
        at = time.monotonic()
        subject = start()
        print(f"{name} up after {time.monotonic() - at:.1f} s", flush=True)
        try:
            passed += sum([passes(check, subject) for check in checks])
        finally:
            subject.stop()
        total += len(checks)
    print(f"{passed} of {total} checks passed in {time.monotonic() - began:.1f} s")
    return 0 if passed == total else 1


if __name__ == "__main__":
    sys.exit(main())
