"""One process of a fleet: sends its robots' requests when they are due and notes what came of each.

Run by benchmarks/fleet.py as `python -m benchmarks.generator FOLDER`. It imports the client and
nothing heavier, so it is there in a moment and is no burden to the server beside it. It says
`ready` when it is connected and is then told on stdin at which instant the run starts; all
processes of a machine have the same monotonic clock.

Open loop: requests go out at fixed times, whatever became of those before. A request that could not
go out on time, since this process or the server was held up, is late by that much more, for all
latencies count from when it was due (no coordinated omission, as in MLPerf LoadGen).
"""

from __future__ import annotations

import gc
import json
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import zmq

from client.errors import CannotServeError, PolicyError
from client.messages import ActionChunk, ActRequest, ErrorReply
from client.network_margin import NetworkMargin
from client.wire import REPLY_LIMITS, Frame, decode, encode

OUTCOMES = ("on_time", "late", "refused", "lost")
LOST_AFTER_S = 1.0
"""Beyond its budget a request is waited for so long; then it is lost."""
READY = "ready"
_ON_TIME, _LATE, _REFUSED, _LOST = range(4)
_SPENT_BUDGET_S = 1e-6
_HIGH_WATER_MARK = (
    1_000_000  # nothing is held back here: that would be another queue than a robot's
)
_CONNECTED_WITHIN_MS = 10_000
_OBSERVATION = "observation."


@dataclass(frozen=True)
class Asked:
    """What all requests have in common.

    Attributes:
        address: of the server.
        session: the robots' session_ids begin with it.
        budget_s: from when a request is due.
        num_steps: None is elastic.
        guidance_scale: w; None is the checkpoint's default.
    """

    address: str
    session: str
    budget_s: float
    num_steps: int | None
    guidance_scale: float | None


@dataclass(frozen=True)
class Job:
    """The requests of one process, ordered by due_s.

    Attributes:
        asked: what they have in common.
        robot: int64 [requests], who asks.
        due_s: float64 [requests], from the start of the run; negative ones warm up.
        question: int64 [requests], rows of the arrays below.
        instruction: str [questions].
        observation: name → [questions, obs_steps, …].
    """

    asked: Asked
    robot: npt.NDArray[np.int64]
    due_s: npt.NDArray[np.float64]
    question: npt.NDArray[np.int64]
    instruction: npt.NDArray[np.str_]
    observation: Mapping[str, npt.NDArray[Any]]

    def save(self, folder: Path) -> None:
        """Write it where `load` finds it."""
        (folder / "asked.json").write_text(json.dumps(asdict(self.asked)), "utf-8")
        arrays: dict[str, npt.NDArray[Any]] = {
            "robot": self.robot,
            "due_s": self.due_s,
            "question": self.question,
            "instruction": self.instruction,
            **{_OBSERVATION + name: array for name, array in self.observation.items()},
        }
        np.savez(folder / "job.npz", **arrays)  # type: ignore[arg-type]  # takes them for allow_pickle

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Inverse of `save`."""
        asked = Asked(**json.loads((folder / "asked.json").read_text("utf-8")))
        with np.load(folder / "job.npz") as file:
            arrays = dict(file)
        names = [name for name in arrays if name.startswith(_OBSERVATION)]
        observation = {name.removeprefix(_OBSERVATION): arrays.pop(name) for name in names}
        return cls(asked, observation=observation, **arrays)


@dataclass(frozen=True)
class Notes:
    """What became of a job's requests, an entry each, in its order.

    Attributes:
        outcome: int8 [requests], place in `OUTCOMES`.
        settled_s: float64 [requests], from due to the answer or refusal; nan if lost.
        send_delay_s: float64 [requests], from due to the sending; nan if not sent.
        num_steps: int64 [requests], executed; 0 without an answer.
        rows_per_call: float64 [requests], that shared its network calls; nan without an answer.
        queue_s: float64 [requests], in the server before any work; nan without an answer.
        model_id: str [requests], of the model that answered; empty without an answer.
        cpu_s: float64 [], used by this process between the first and the last counted request.
    """

    outcome: npt.NDArray[np.int8]
    settled_s: npt.NDArray[np.float64]
    send_delay_s: npt.NDArray[np.float64]
    num_steps: npt.NDArray[np.int64]
    rows_per_call: npt.NDArray[np.float64]
    queue_s: npt.NDArray[np.float64]
    model_id: npt.NDArray[np.str_]
    cpu_s: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, requests: int) -> Notes:
        """Nothing has been answered: all are lost."""
        unknown = np.full((4, requests), np.nan)
        return cls(
            outcome=np.full(requests, _LOST, np.int8),
            settled_s=unknown[0],
            send_delay_s=unknown[1],
            num_steps=np.zeros(requests, np.int64),
            rows_per_call=unknown[2],
            queue_s=unknown[3],
            model_id=np.zeros(requests, "U1"),
            cpu_s=np.zeros(()),
        )

    def save(self, folder: Path) -> None:
        """Write it where `load` finds it."""
        np.savez(folder / "notes.npz", **vars(self))

    @classmethod
    def load(cls, folder: Path) -> Notes:
        """Inverse of `save`."""
        with np.load(folder / "notes.npz") as file:
            return cls(**file)


class Line(Protocol):
    """The way to a server and back; `SocketLine` in real time, something simulated in tests."""

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send a message without waiting; False if there is nobody to send to."""
        ...

    def receive(self) -> list[bytes] | None:
        """The next message, if one has come."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return when a message may have come, or after `timeout_s`."""
        ...


class SocketLine:
    """A DEALER socket that all robots of a process share; the server tells them by session_id."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, _HIGH_WATER_MARK),
            (zmq.RCVHWM, _HIGH_WATER_MARK),
            (zmq.MAXMSGSIZE, REPLY_LIMITS.max_frame_bytes),
            (zmq.IMMEDIATE, 1),  # as the client's: nothing piles up for a server that is not there
        ):
            self._socket.setsockopt(option, value)
        self._socket.connect(address)
        self._readable = [self._socket.fileno()]
        self._polled = [(self._socket, int(zmq.POLLIN))]

    @property
    def connected(self) -> bool:
        """Whether there is a server; waits for it for ten seconds."""
        return bool(self._socket.poll(_CONNECTED_WITHIN_MS, zmq.POLLOUT))

    def send(self, frames: Sequence[Frame]) -> bool:
        """See `Line`."""
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[bytes] | None:
        """See `Line`."""
        if zmq.zmq_poll(self._polled, 0):  # an exception takes three times as long
            return self._socket.recv_multipart(zmq.NOBLOCK)
        return None

    def wait(self, timeout_s: float) -> None:
        """See `Line`; call it only after `receive` has given None.

        ZeroMQ's own poll counts in whole milliseconds. Its file descriptor signals a change of
        state, and there was none since `receive` found nothing.
        """
        select.select(self._readable, (), (), timeout_s)

    def close(self) -> None:
        """Drop what is still to be sent."""
        self._socket.close(linger=0)
        self._context.term()


@dataclass
class Generator:
    """Works through a job in real time.

    Attributes:
        job: what to send and when.
        line: to the server.
        clock: monotonic, in seconds.
        cpu_clock: of this process, in seconds.
    """

    job: Job
    line: Line
    clock: Callable[[], float] = time.monotonic
    cpu_clock: Callable[[], float] = time.process_time
    _margins: dict[int, NetworkMargin] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Prepare everything that need not be made while the clock runs."""
        job = self.job
        self._notes = Notes.empty(len(job.due_s))
        self._robot = job.robot.tolist()
        self._margins = {robot: NetworkMargin() for robot in set(self._robot)}
        self._session = {robot: f"{job.asked.session}-{robot}" for robot in self._margins}
        self._question = job.question.tolist()
        self._instruction = job.instruction.tolist()
        self._observation = [
            {name: np.ascontiguousarray(array[row]) for name, array in job.observation.items()}
            for row in range(len(job.instruction))
        ]
        self._sent_s: dict[int, float] = {}
        self._model_id = [""] * len(job.due_s)

    def run(self, start_s: float) -> Notes:
        """Send every request when it is due; return when each is settled or lost.

        Args:
            start_s: instant from which due_s counts.

        Raises:
            RuntimeError: the server said that a request, or it itself, is at fault.
        """
        requests = len(self.job.due_s)
        self._due_s = (start_s + self.job.due_s).tolist()
        counted = int(np.searchsorted(self.job.due_s, 0.0))  # those before warm up
        end_s = self._due_s[-1] + self.job.asked.budget_s + LOST_AFTER_S
        began_cpu_s = 0.0
        sent = 0
        while True:
            now_s = self.clock()
            due = sent < requests and self._due_s[sent] <= now_s
            if due:
                if sent == counted:
                    began_cpu_s = self.cpu_clock()
                self._send(sent, now_s)
                sent += 1
                if sent == requests:
                    self._notes.cpu_s[...] = self.cpu_clock() - began_cpu_s
            # two to one: whatever holds this process up, it catches up with both
            if self._take_in(at_most=2) or due:
                continue
            if sent < requests:
                self.line.wait(self._due_s[sent] - now_s)
            elif self._sent_s and now_s < end_s:
                self.line.wait(end_s - now_s)
            else:
                return replace(self._notes, model_id=np.array(self._model_id))

    def _send(self, index: int, now_s: float) -> None:
        """What `PolicyClient.submit` does, for request `index`."""
        asked, robot = self.job.asked, self._robot[index]
        delay_s = now_s - self._due_s[index]
        left_s = asked.budget_s - delay_s
        if left_s > 0:
            left_s -= self._margins[robot].of(left_s)
        elif asked.num_steps is not None:
            left_s = _SPENT_BUDGET_S
        else:
            self._settle(index, _REFUSED, delay_s)
            return
        question = self._question[index]
        request = ActRequest(
            session_id=self._session[robot],
            request_id=index,  # rises within each session, and is the only one of this connection
            observation=self._observation[question],
            instruction=self._instruction[question],
            budget_s=left_s,
            num_steps=asked.num_steps,
            guidance_scale=asked.guidance_scale,
        )
        if self.line.send(encode(request)):
            self._sent_s[index] = now_s
            self._notes.send_delay_s[index] = delay_s

    def _settle(self, index: int, outcome: int, after_s: float) -> None:
        self._notes.outcome[index] = outcome
        self._notes.settled_s[index] = after_s

    def _take_in(self, at_most: int) -> bool:
        """Settle what has come; False if nothing more has."""
        for _ in range(at_most):
            frames = self.line.receive()
            if frames is None:
                return False
            self._note(frames, self.clock())
        return True

    def _note(self, frames: list[bytes], now_s: float) -> None:
        reply = decode(frames)
        index = reply.request_id
        sent_s = None if index is None else self._sent_s.pop(index, None)
        if index is None or sent_s is None:
            raise RuntimeError(f"the server answered what was not asked: {reply}")
        latency_s = now_s - self._due_s[index]
        budget_s = self.job.asked.budget_s
        if latency_s > budget_s + LOST_AFTER_S:
            return  # given up before
        match reply:
            case ActionChunk():
                timing, notes = reply.timing, self._notes
                self._margins[self._robot[index]].add(now_s - sent_s, timing.total_s)
                self._settle(index, _ON_TIME if latency_s <= budget_s else _LATE, latency_s)
                notes.num_steps[index] = reply.num_steps
                notes.rows_per_call[index] = reply.rows_per_call
                notes.queue_s[index] = timing.queue_s
                self._model_id[index] = reply.model_id
            case ErrorReply() if isinstance(reply.to_error(), CannotServeError):
                self._settle(index, _REFUSED, latency_s)
            case _:
                raise RuntimeError(f"request {index}: expected an answer or a refusal, got {reply}")


def main() -> None:
    """Entry point."""
    folder = Path(sys.argv[1])
    job = Job.load(folder)
    line = SocketLine(job.asked.address)
    try:
        if not line.connected:
            sys.exit(f"error: no connection to {job.asked.address}; is the server running there?")
        generator = Generator(job, line)
        # no pause of the collector may pass for one of the server; nothing here makes cycles
        gc.collect()
        gc.freeze()
        gc.disable()
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        generator.run(float(sys.stdin.readline())).save(folder)
    except (OSError, RuntimeError, PolicyError) as error:
        sys.exit(f"error: {error}")
    finally:
        line.close()


if __name__ == "__main__":
    main()
