"""Runs both schedulers on one scenario file and keeps what they say."""

import json
import os
import subprocess
import time


def process(command):
    """Runs a command to its end: its standard output, and the most memory that it ever held resident, in bytes.

    The kernel's own account (wait4), so both schedulers are measured alike: reading the scenario included.
    """
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return output, usage.ru_maxrss * 1024


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
    """The fastest of some runs, each a process of its own; memory is the whole process's peak, the worst of the runs."""
    runs = []
    for _ in range(repeat):
        start = time.monotonic()
        output, peak = process([binary, "simulate", "--scenario", scenario, "--output", "json"])
        answer = json.loads(output)
        runs.append(Outcome(answer, answer["solveSeconds"], peak, time.monotonic() - start))
    texts = [json.dumps({k: v for k, v in r.answer.items() if k not in ("solveSeconds", "peakRssBytes")}) for r in runs]
    if len(set(texts)) != 1:
        raise SystemExit(f"{scenario}: two runs gave two answers")
    best = min(runs, key=lambda r: r.seconds)
    best.peak = max(r.peak for r in runs)
    return best


def disruption(binary, scenario, to_rest):
    """What a pass of disruption does to a cluster, or all passes until at rest; the fastest of three runs with the same answer."""
    command = [binary, "simulate", "--disrupt", "--scenario", scenario, "--output", "json"] + (["--all"] if to_rest else [])
    answers = [json.loads(process(command)[0]) for _ in range(3)]
    texts = [json.dumps({k: v for k, v in a.items() if k != "solveSeconds"}) for a in answers]
    if len(set(texts)) != 1:
        raise SystemExit(f"{scenario}: two runs gave two answers")
    return min(answers, key=lambda a: a["solveSeconds"])


def peers(binary, scenario, repeat, limit):
    """The peer at its best: the fastest run and the lowest price; memory is the whole process's peak, as for us.

    The peak of solving alone, after a garbage collection, is kept beside it: the smaller figure, in the peer's favour.
    """
    command = [binary, "-repeat", str(repeat), "-limit", f"{limit}s", scenario]
    output, peak = process(command)
    answer = json.loads(output)
    outcome = Outcome(answer, answer["solveSeconds"], peak)
    outcome.solving = answer["peakRssBytes"]
    outcome.timed_out = any(run["timedOut"] for run in answer["runs"])
    return outcome
