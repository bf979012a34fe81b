"""Runs both schedulers on one scenario file and keeps what they say."""

import json
import subprocess
import time


class Outcome:
    """One scheduler's answer to one scenario."""

    def __init__(self, answer, seconds, peak, whole=None):
        self.answer, self.seconds, self.peak, self.whole = answer, seconds, peak, whole
        self.nodes = len(answer["nodeClaims"])
        self.price = answer["totalPrice"]
        self.unschedulable = len(answer["unschedulable"])
        self.on_existing = sum(len(node["pods"]) for node in answer["existingNodes"])

    @property
    def placed_on_new(self):
        return {pod for claim in self.answer["nodeClaims"] for pod in claim["pods"]}

    def summary(self):
        return {"solveSeconds": self.seconds, "peakRssBytes": self.peak, "wholeSeconds": self.whole, "nodes": self.nodes,
                "totalPrice": self.price, "unschedulable": self.unschedulable, "onExistingNodes": self.on_existing}


def ours(binary, scenario, repeat=3):
    """The fastest of some runs, each a process of its own; memory is the whole process's peak, its reading included."""
    runs = []
    for _ in range(repeat):
        start = time.monotonic()
        done = subprocess.run([binary, "simulate", "--scenario", scenario, "--output", "json"], stdout=subprocess.PIPE, check=True)
        answer = json.loads(done.stdout)
        runs.append(Outcome(answer, answer["solveSeconds"], answer["peakRssBytes"], time.monotonic() - start))
    texts = [json.dumps({k: v for k, v in r.answer.items() if k not in ("solveSeconds", "peakRssBytes")}) for r in runs]
    if len(set(texts)) != 1:
        raise SystemExit(f"{scenario}: two runs gave two answers")
    best = min(runs, key=lambda r: r.seconds)
    best.peak = max(r.peak for r in runs)
    return best


def peers(binary, scenario, repeat, limit):
    """The peer at its best: the fastest run, the lowest peak (of solving alone), the lowest price."""
    command = [binary, "-repeat", str(repeat), "-limit", f"{limit}s", scenario]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    answer = json.loads(done.stdout)
    outcome = Outcome(answer, answer["solveSeconds"], answer["peakRssBytes"])
    outcome.timed_out = any(run["timedOut"] for run in answer["runs"])
    return outcome
