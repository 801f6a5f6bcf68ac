"""What the client's tests share: a small policy, a fake clock, and a real ROUTER socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import zmq

from client import wire
from client.messages import (
    ActionChunk,
    ActRequest,
    CancelRequest,
    Message,
    Metadata,
    MetadataReply,
    MetadataRequest,
    Pong,
    SamplingDefaults,
    Timing,
)
from client.specs import ArraySpec, PolicySpec

Frames = Sequence[wire.Frame]
Answer = Callable[[Message], Sequence[Frames]]


@pytest.fixture
def spec() -> PolicySpec:
    """A policy of one number in and two out, 100 ticks a second, a request every 4 ticks."""
    return PolicySpec(
        task="test",
        observation={"state": ArraySpec((3, 1), "float32", ("tick",))},
        action_names=("tick", "request"),
        action_minimum=(-1000.0, -1000.0),
        action_maximum=(1000.0, 1000.0),
        horizon=10,
        obs_steps=3,
        exec_steps=4,
        control_period_s=0.01,
    )


@pytest.fixture
def metadata(spec: PolicySpec) -> Metadata:
    return Metadata(
        model_id="test-1",
        spec_id=spec.spec_id,
        spec=spec,
        min_steps=2,
        max_useful_steps=10,
        max_steps=100,
        defaults=SamplingDefaults(0.0, 0.0, "ddim", "trailing"),
        limits={"max_instruction_bytes": 1000},
        protocol_version=wire.PROTOCOL_VERSION,
        backend="none",
        server_version="0",
    )


@pytest.fixture
def answer_chunk(spec: PolicySpec) -> Callable[..., ActionChunk]:
    """`chunk_for` with the spec of the test."""

    def answer(request: ActRequest, total_s: float = 0.0) -> ActionChunk:
        return chunk_for(request, spec, total_s)

    return answer


def chunk_for(request: ActRequest, spec: PolicySpec, total_s: float = 0.0) -> ActionChunk:
    """actions[i] = [newest observation + i, request_id]: an action says when it is for."""
    actions = np.empty((spec.horizon, 2), np.float32)
    actions[:, 0] = request.observation["state"][-1, 0] + np.arange(spec.horizon)
    actions[:, 1] = request.request_id
    return ActionChunk(
        request_id=request.request_id,
        actions=actions,
        num_steps=2,
        timesteps=(99, 49),
        nfe=2,
        rows_per_call=1.5,
        deadline_met=True,
        model_id="test-1",
        spec_id=spec.spec_id,
        guidance_scale=0.0,
        eta=0.0,
        seed=0,
        timing=Timing(0.0, 0.0, total_s, total_s),
    )


class Server:
    """A ROUTER socket on a thread; `answer` turns each message into the frames of its replies."""

    def __init__(self, answer: Answer, address: str = "tcp://127.0.0.1:0") -> None:
        self._answer = answer
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(address)
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.received: list[Message] = []
        self.failure: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if self._socket.poll(5):
                    peer, *frames = self._socket.recv_multipart()
                    message = wire.decode(frames)
                    self.received.append(message)
                    for reply in self._answer(message):
                        self._socket.send_multipart([peer, *reply])
        except Exception as error:  # noqa: BLE001  reported by stop()
            self.failure = error

    def stop(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._socket.close()
            self._context.term()
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def answer(metadata: Metadata) -> Answer:
    """What a good server answers, at once."""

    def reply(message: Message) -> Sequence[Frames]:
        match message:
            case ActRequest():
                return [wire.encode(chunk_for(message, metadata.spec))]
            case MetadataRequest():
                return [wire.encode(MetadataReply(message.request_id, metadata))]
            case CancelRequest():
                return []
        assert message.request_id is not None
        return [wire.encode(Pong(message.request_id))]

    return reply


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers that end with the test."""
    servers: list[Server] = []

    def start(answer: Answer, address: str = "tcp://127.0.0.1:0") -> Server:
        servers.append(Server(answer, address))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


class FakeClock:
    """Time that passes only when somebody sleeps."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        assert duration_s > 0
        self.now_s += duration_s


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
