"""`world up|down|status|age`: the local world's command line."""

import argparse
import json
import os
import pathlib
import shutil
import sys
import time

import kube

from . import age, components, processes, supervisor


def arguments():
    parser = argparse.ArgumentParser(prog="world", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start everything; returns when it is ready")
    up.add_argument("--watch-pid", type=int, help="take everything down when this process is gone")
    up.add_argument("--pending", type=float, default=1, help="seconds an instance is pending")
    up.add_argument("--boot", type=float, default=1, help="seconds from running to the Node")
    up.add_argument("--shutting", type=float, default=1, help="seconds an instance shuts down")
    up.add_argument("--system", action="store_true", help="a tainted node and the Service kube-dns")
    up.add_argument("--csi", action="store_true", help="a CSI driver that registers on every node")
    up.add_argument("--pod-eni", action="store_true", help="nodes have branch interfaces for pods")
    up.add_argument("--proxy", action="store_true", help="a proxy that can lose answers")
    up.add_argument(
        "--controller",
        type=pathlib.Path,
        help="a binary to run as the Deployment karpenter; implies --system",
    )
    down = commands.add_parser("down", help="end everything that `up` started")
    down.add_argument("--delete", action="store_true", help="delete the folder too")
    status = commands.add_parser("status", help="what is running; exit code 0 if all is")
    older = commands.add_parser("age", help="make a Node older than it is")
    older.add_argument("node", help="its name")
    older.add_argument("seconds", type=int, help="how much older")
    for one in (up, down, status, older):
        one.add_argument("--dir", type=pathlib.Path, required=True, help="the world's folder")
    return parser.parse_args()


def read(folder):
    try:
        return json.loads((folder / "world.json").read_text())
    except FileNotFoundError:
        return None


def running(world):
    """The processes of a world that are there, by name."""
    if not world:
        return {}
    all_of_it = {**world["children"], "supervisor": world["supervisor"]}
    return {name: one for name, one in all_of_it.items() if processes.alive(one)}


def up(options):
    folder = options.dir.resolve()
    if running(read(folder)):
        sys.exit(f"a world is up in {folder}; take it down first")
    for old in ("etcd", "pki", "logs", "kubeconfigs"):
        shutil.rmtree(folder / old, ignore_errors=True)
    for old in ("world.json", "env", "aws.json"):
        (folder / old).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    options.watch = processes.record(options.watch_pid) if options.watch_pid else None
    if options.watch and options.watch["start"] is None:
        sys.exit(f"there is no process {options.watch_pid} to watch")
    options.starter = processes.record(os.getpid())
    binaries = pathlib.Path(os.environ["WORLD_BIN"])
    world = components.World(folder, binaries, options)
    began = time.monotonic()
    holder = supervisor.detach(world, options)
    last = None
    while True:
        state = read(folder)
        if state and state["state"] == "ready":
            break
        if not processes.alive(holder):
            why = (state or {}).get("why") or f"see {folder / 'logs' / 'world.log'}"
            sys.exit(f"the world did not come up: {why}")
        now = len((state or {}).get("children", {}))
        if now != last and state:
            newest = list(state["children"])[-1] if state["children"] else "nothing yet"
            print(f"{time.monotonic() - began:5.1f} s  started {newest}", flush=True)
            last = now
        time.sleep(0.1)
    took = ", ".join(f"{name} {seconds} s" for name, seconds in state["timings"].items())
    print(f"up: {took}\nenvironment: {folder / 'env'}\nlogs: {folder / 'logs'}")


def down(options):
    folder = options.dir.resolve()
    world = read(folder)
    found = running(world)
    if "supervisor" in found:
        processes.end([found["supervisor"]], 15)
    left = processes.end(list(running(world).values()), 2)
    print(f"down: {len(found)} processes ended" + (f", {len(left)} by force" if left else ""))
    if options.delete and world:
        shutil.rmtree(folder)


def status(options):
    world = read(options.dir.resolve())
    if not world:
        sys.exit("no world has been here")
    found = running(world)
    for name, one in {**world["children"], "supervisor": world["supervisor"]}.items():
        print(f"{name:26} {one['pid']:8} {'running' if name in found else 'gone'}")
    if world["why"]:
        print(f"it {world['state']}: {world['why']}")
    sys.exit(0 if world["state"] == "ready" and len(found) == len(world["children"]) + 1 else 1)


def make_older(options):
    folder = options.dir.resolve()
    values = (read(folder) or sys.exit("no world has been here"))["env"]
    api = kube.Api(folder / "kubeconfig")
    age.make_older(values["WORLD_ETCD"], api, options.node, options.seconds)


if __name__ == "__main__":
    settings = arguments()
    commands = {"up": up, "down": down, "status": status, "age": make_older}
    commands[settings.command](settings)
