"""Faults that tests inject, and the log of what was called."""

import collections
import itertools
import random
import threading
import time


class Faults:
    """Rules, tried in order; the first that fits a call is the one."""

    FIELDS = frozenset(
        "service action contains after times probability delay code message status lose".split()
    )

    def __init__(self):
        self.rules, self.lock = [], threading.Lock()

    def add(self, rule):
        unknown = set(rule) - self.FIELDS
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)}")
        with self.lock:
            self.rules.append(dict(rule))

    def clear(self):
        with self.lock:
            self.rules.clear()

    def find(self, request):
        with self.lock:
            for rule in self.rules:
                if not self._fits(rule, request) or rule.get("times", 1) <= 0:
                    continue
                if rule.get("after", 0) > 0:
                    rule["after"] -= 1
                    continue
                if random.random() >= rule.get("probability", 1):
                    continue
                if "times" in rule:
                    rule["times"] -= 1
                return dict(rule)
        return None

    @staticmethod
    def _fits(rule, request):
        if rule.get("service", request.service) != request.service:
            return False
        if rule.get("action", request.action) != request.action:
            return False
        return rule.get("contains", "").encode() in request.body


class CallLog:
    """The last calls, with their parameters."""

    def __init__(self):
        self.records = collections.deque(maxlen=5000)
        self.numbers = itertools.count(1)

    def add(self, request, parameters):
        record = {
            "number": next(self.numbers),
            "time": time.time(),
            "service": request.service,
            "action": request.action,
            "region": request.region,
            "parameters": parameters,
        }
        self.records.append(record)
        return record

    def select(self, query):
        after = int(query.get("after", 0))
        return [
            r
            for r in list(self.records)
            if r["number"] > after
            and query.get("service") in (None, r["service"])
            and query.get("action") in (None, r["action"])
        ]
