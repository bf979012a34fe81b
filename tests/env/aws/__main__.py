"""Starts the local AWS on 127.0.0.1: `python -m aws --port 0 --state-file FILE`."""

import argparse
import base64
import json
import logging
import os
import pathlib
import threading
import time

os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"


def arguments():
    parser = argparse.ArgumentParser(prog="aws", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 finds a free one")
    parser.add_argument("--state-file", type=pathlib.Path, help="written once it answers")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--cluster", default="weasel-eks")
    parser.add_argument("--kubernetes", default="1.30", help="the version EKS tells")
    parser.add_argument("--cluster-endpoint", help="the API server's URL")
    parser.add_argument("--cluster-ca-file", type=pathlib.Path, help="PEM")
    parser.add_argument("--service-cidr", default="10.100.0.0/16")
    parser.add_argument("--pending", type=float, default=1, help="seconds until running")
    parser.add_argument("--shutting", type=float, default=1, help="seconds until terminated")
    settings = parser.parse_args()
    settings.cluster_ca = None
    if settings.cluster_ca_file:
        settings.cluster_ca = base64.b64encode(settings.cluster_ca_file.read_bytes()).decode()
    return settings


def main():
    settings = arguments()
    began = time.monotonic()
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    from . import patches, seed
    from .server import Application

    application = Application(DomainDispatcherApplication(create_backend_app), settings)
    patches.apply(application.world.machines.adopt)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    MotoRequestHandler.protocol_version = "HTTP/1.1"
    server = make_server(
        "127.0.0.1",
        settings.port,
        application,
        threaded=True,
        request_handler=MotoRequestHandler,
    )
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.socket.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    seed.seed_images(application.world)
    made = seed.seed_account(endpoint, settings)
    application.world.calls.records.clear()
    state = {"pid": os.getpid(), "port": port, "endpoint": endpoint, **made}
    if settings.state_file:
        part = settings.state_file.with_suffix(".part")
        part.write_text(json.dumps(state, indent=1))
        part.rename(settings.state_file)
    print(f"ready on {endpoint} after {time.monotonic() - began:.1f} s", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
