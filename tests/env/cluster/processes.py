"""Processes told apart beyond doubt: by id and start time, so that no stranger is ever killed."""

import ctypes
import os
import pathlib
import signal
import subprocess
import time

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def started_at(pid):
    """When a process started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def alive(record):
    """Whether a recorded {"pid", "start"} is still that very process."""
    if record is None or record["start"] is None:
        return False
    return started_at(record["pid"]) == record["start"]


def record(pid):
    return {"pid": pid, "start": started_at(pid)}


def start(command, log, env, cwd=None):
    """A child in a group of its own that the kernel kills when we die."""
    parent = os.getpid()

    def prepare():
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    with open(log, "ab") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=prepare,  # noqa: PLW1509 - the supervisor starts from its one thread
        )


def end(records, patience):
    """Ends recorded processes, kindly first; gives those that were there."""
    found = [r for r in records if alive(r)]
    for one in found:
        _signal(one, signal.SIGTERM)
    limit = time.monotonic() + patience
    while any(alive(r) for r in found) and time.monotonic() < limit:
        time.sleep(0.05)
    for one in found:
        if alive(one):
            _signal(one, signal.SIGKILL)
    limit = time.monotonic() + 5
    while any(alive(r) for r in found) and time.monotonic() < limit:
        time.sleep(0.02)
    return found


def _signal(one, number):
    if alive(one):
        try:
            os.kill(one["pid"], number)
        except ProcessLookupError:
            pass
