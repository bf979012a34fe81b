"""Checks of the local AWS: `python -m tests [NAME...]` from tests/env."""

import importlib
import sys
import time
import traceback

from .harness import Aws

MODULES = ("boot_checks", "fleet_checks", "service_checks")


def main():
    began = time.monotonic()
    aws = Aws("--pending", "0.5", "--shutting", "0.5")
    print(f"local AWS up after {time.monotonic() - began:.1f} s")
    failed = total = 0
    try:
        for name in MODULES:
            for check in importlib.import_module(f".{name}", __package__).CHECKS:
                if sys.argv[1:] and check.__name__ not in sys.argv[1:]:
                    continue
                total += 1
                at = time.monotonic()
                try:
                    check(aws)
                    verdict = "ok  "
                except Exception:  # noqa: BLE001 - every check is to be tried
                    failed += 1
                    verdict = "FAIL"
                    traceback.print_exc(file=sys.stdout)
                title = check.__name__.replace("_", " ")
                print(f"{verdict} {time.monotonic() - at:5.2f} s  {title}")
    finally:
        aws.stop()
    print(f"{total - failed} of {total} checks passed in {time.monotonic() - began:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
