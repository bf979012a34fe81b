"""Prints the queries of the chart's dashboards as recording rules, so that promtool reads them as Prometheus does.

Usage: dashboards.py FOLDER | promtool check rules
"""

import json
import pathlib
import re
import sys


def queries(board):
    """Each query of a dashboard, with values for Grafana's variables."""
    for panel in board["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "5m")
            yield re.sub(r"\$\w+", ".*", query)


rules = []
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    for number, query in enumerate(queries(json.loads(file.read_text()))):
        rules.append({"record": f"dashboard:{file.stem}:{number}", "expr": query})
if not rules:
    sys.exit(f"no dashboards in {sys.argv[1]}")
# JSON is YAML, too.
print(json.dumps({"groups": [{"name": "dashboards", "rules": rules}]}, indent=1))
