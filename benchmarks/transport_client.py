"""The asking side of `benchmarks transport`, as a process: so many round trips when it is told to.

    python -m benchmarks.transport_client TRANSPORT ADDRESS CASE

with CASE as JSON. It writes what a request and its reply weigh, then reads numbers from stdin, and
after each of them makes so many round trips and writes what they took; all as lines of JSON. The
loop is one for all transports. openpi's client has an environment of its own, whose Python runs
this file by its path; so each client imports what it needs when it is made, and nothing of this
project is imported there.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

WARM_UP = 10
"""Round trips before those that count, each time: whoever was here before has left the caches."""
INSTRUCTION = "open the drawer"
_WITHIN_S = 30.0

Observation = Mapping[str, npt.NDArray[Any]]


class Client(Protocol):
    """One transport's.

    Attributes:
        request_bytes: what a request weighs, without the transport's own framing.
        reply_bytes: the same of its reply.
        packages: whose versions belong to the result.
    """

    request_bytes: int
    reply_bytes: int
    packages: Sequence[str]

    def round_trip(self) -> object:
        """From the call to the answer in hand."""
        ...


class PolicyServerClient(Client):
    """`PolicyClient.act`, as a robot calls it, of a server that knows the instruction already.

    Both sides check all that they check of any request: fields, names, shapes, dtypes, and that
    floats are finite.
    """

    packages = ()

    def __init__(self, address: str, case: Mapping[str, Any]) -> None:
        from client import PolicyClient  # noqa: PLC0415 - see the module's first lines

        self._observation = make_observation(case)
        self.request_bytes, self.reply_bytes = self._weighed(address)
        self._policy = PolicyClient(address)
        self._policy.metadata(timeout_s=_WITHIN_S)

    def _weighed(self, address: str) -> tuple[int, int]:
        """Of one exchange by hand, which also has the instruction embedded."""
        from client.connection import Connection  # noqa: PLC0415
        from client.wire import REPLY_LIMITS, ActionChunk, ActRequest, decode, encode  # noqa: PLC0415

        connection = Connection(address, REPLY_LIMITS.max_frame_bytes, None)
        within_ms = int(_WITHIN_S * 1000)
        request = encode(
            ActRequest(uuid.uuid4().hex, 1, self._observation, INSTRUCTION, budget_s=_WITHIN_S)
        )
        try:
            if not (connection.wait_connected(within_ms) and connection.send(request)):
                raise RuntimeError(f"no connection to {address}")
            reply = connection.receive(within_ms)
        finally:
            connection.close()
        if reply is None or not isinstance(decode(reply), ActionChunk):
            raise RuntimeError(f"{address}: expected an action chunk, got {reply}")
        return sum(map(len, request)), sum(map(len, reply))

    def round_trip(self) -> object:
        """See `Client`."""
        return self._policy.act(self._observation, INSTRUCTION, budget_s=1.0)


class OpenpiClient(Client):
    """`WebsocketClientPolicy.infer`: msgpack with arrays as bytes in it, over a websocket."""

    packages = ("openpi-client", "openpi-server", "websockets", "msgpack", "numpy")

    def __init__(self, address: str, case: Mapping[str, Any]) -> None:
        from openpi_client.msgpack_numpy import packb  # noqa: PLC0415
        from openpi_client.websocket_client_policy import WebsocketClientPolicy  # noqa: PLC0415

        self._policy = WebsocketClientPolicy(address)
        self._observation = {**make_observation(case), "prompt": INSTRUCTION}
        self.request_bytes = len(packb(self._observation))
        self.reply_bytes = len(packb(self.round_trip()))

    def round_trip(self) -> object:
        """See `Client`."""
        return self._policy.infer(self._observation)


class BarePyzmqClient(Client):
    """Bytes to a REQ socket and bytes from it, as many as ours are, in one frame each way."""

    packages = ()

    def __init__(self, address: str, case: Mapping[str, Any]) -> None:
        import zmq  # noqa: PLC0415

        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
        self._socket.setsockopt(zmq.RCVTIMEO, int(_WITHIN_S * 1000))
        self._socket.connect(address)
        self._request = os.urandom(case["request_bytes"])
        self.request_bytes = len(self._request)
        self.reply_bytes = len(self.round_trip())

    def round_trip(self) -> bytes:
        """See `Client`."""
        self._socket.send(self._request)
        return self._socket.recv()


CLIENTS: dict[str, Callable[[str, Mapping[str, Any]], Client]] = {
    "policy_server": PolicyServerClient,
    "openpi": OpenpiClient,
    "bare_pyzmq": BarePyzmqClient,
}


def make_observation(case: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Random numbers and random pictures, the same for everybody.

    Args:
        case: its arrays are (shape, dtype) by name, its seed a number.
    """
    rng = np.random.default_rng(case["seed"])
    return {
        name: (
            rng.integers(256, size=shape, dtype=np.uint8)
            if dtype == "uint8"
            else rng.standard_normal(shape, dtype=np.float32)
        )
        for name, (shape, dtype) in case["arrays"].items()
    }


def _say(what: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point; ends when stdin does."""
    transport, address, case = sys.argv[1:]
    client = CLIENTS[transport](address, json.loads(case))
    _say(
        {
            "request_bytes": client.request_bytes,
            "reply_bytes": client.reply_bytes,
            "packages": {name: version(name) for name in client.packages},
        }
    )
    for line in sys.stdin:
        for _ in range(WARM_UP):
            client.round_trip()
        round_trip_s = []
        begun_cpu_s = time.process_time()
        for _ in range(int(line)):
            begun_s = time.perf_counter()
            client.round_trip()
            round_trip_s.append(time.perf_counter() - begun_s)
        cpu_s = time.process_time() - begun_cpu_s
        _say({"round_trip_s": round_trip_s, "cpu_s": cpu_s})


if __name__ == "__main__":
    main()
