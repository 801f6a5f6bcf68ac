"""What `benchmarks transport` compares with, as a process: a server that computes nothing.

    python -m benchmarks.transport_server TRANSPORT CASE

with CASE as JSON; writes `ready ADDRESS` when it can be asked. openpi's has an environment of its
own, whose Python runs this file by its path; nothing of this project is imported here.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.request import urlopen

import numpy as np

_LOOK_EVERY_S = 0.02


def serve_bare_pyzmq(case: Mapping[str, Any]) -> None:
    """A REP socket that answers every request with the same bytes, as many as ours are."""
    import zmq  # noqa: PLC0415 - not in openpi's environment

    server: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REP)
    server.bind("tcp://127.0.0.1:*")
    _ready(server.getsockopt_string(zmq.LAST_ENDPOINT))
    reply = os.urandom(case["reply_bytes"])
    while True:
        server.recv()
        server.send(reply)


def serve_openpi(case: Mapping[str, Any]) -> None:
    """The websocket server of openpi around a policy that answers with zeros.

    It unpacks a request into arrays, calls the policy, and packs the answer; it checks nothing.
    """
    from openpi_client.base_policy import BasePolicy  # noqa: PLC0415
    from openpi_server.websocket_policy_server import WebsocketPolicyServer  # noqa: PLC0415

    actions = np.zeros(case["chunk_shape"], np.float32)

    class NullPolicy(BasePolicy):  # type: ignore[misc]  # not installed where types are checked
        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            return {"actions": actions}

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    threading.Thread(target=_ready_when_healthy, args=(port,), daemon=True).start()
    WebsocketPolicyServer(NullPolicy(), "127.0.0.1", port).serve_forever()


def _ready_when_healthy(port: int) -> None:
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1):
                break
        except OSError:
            time.sleep(_LOOK_EVERY_S)
    _ready(f"ws://127.0.0.1:{port}")


def _ready(address: str) -> None:
    sys.stdout.write(f"ready {address}\n")
    sys.stdout.flush()


SERVERS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "openpi": serve_openpi,
    "bare_pyzmq": serve_bare_pyzmq,
}


def main() -> None:
    """Entry point; serves until it is ended."""
    transport, case = sys.argv[1:]
    SERVERS[transport](json.loads(case))


if __name__ == "__main__":
    main()
