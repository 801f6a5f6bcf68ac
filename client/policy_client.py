"""A policy server as an object with methods.

What can be decided without a socket is decided elsewhere: client/wire.py (bytes),
client/outstanding.py (which answer belongs to which request), client/network_margin.py (budgets).
The socket is in client/connection.py.
"""

from __future__ import annotations

import itertools
import math
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import numpy.typing as npt

from client.connection import HIGH_WATER_MARK, Connection, Context
from client.errors import (
    ConnectionLostError,
    DeadlineError,
    InvalidRequestError,
    PolicyError,
    ProtocolError,
)
from client.field_checks import positive_seconds
from client.keys import ClientKeys
from client.messages import (
    ActionChunk,
    ActRequest,
    CancelRequest,
    Message,
    Metadata,
    MetadataReply,
    MetadataRequest,
    PingRequest,
    Pong,
    Request,
)
from client.network_margin import NetworkMargin
from client.outstanding import Chunk, Outstanding, Result, Sent
from client.wire import REPLY_LIMITS, WireLimits, decode, encode

_MAX_REPLIES_PER_COLLECT = 2 * HIGH_WATER_MARK  # a flood of replies cannot hold the caller
_MAX_SETTLED = 256  # beyond them what belongs to no request is dropped: `poll` may never be called
_SPENT_BUDGET_S = 1e-6  # on the wire when a request must go out although its budget is spent
_LONGEST_WAIT_MS = 1000

T = TypeVar("T", Chunk, MetadataReply, Pong)


class PolicyClient:
    """Asks a policy server for actions; one robot, one thread.

    No method waits for longer than its timeout_s, and `submit` does not wait at all. The connection
    comes back by itself after the server was away; what was asked meanwhile is lost, not queued,
    since an old question is worth nothing to a robot.

    Example:
        >>> with PolicyClient("tcp://127.0.0.1:5555") as policy:  # doctest: +SKIP
        ...     chunk = policy.act(observation, "open the drawer", budget_s=0.08)
    """

    def __init__(
        self,
        address: str,
        *,
        session_id: str | None = None,
        keys: str | Path | None = None,
        limits: WireLimits = REPLY_LIMITS,
        context: Context | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to connect; returns at once, whether a server is there or not.

        Args:
            address: of the server as ZeroMQ writes it, e.g. "tcp://192.168.0.7:5555".
            session_id: name of this robot; random if None.
            keys: folder made by `python -m policy_server keygen`, for a server that asks for keys.
            limits: on what is sent and accepted.
            context: to share ZeroMQ's threads with other sockets; `close` ends only an own one.
            clock: monotonic, in seconds; whoever gives due_s must use the same.

        Raises:
            InvalidRequestError: the address cannot be one, or the folder has no usable keys.
        """
        self.address = address
        self.session_id = session_id or uuid.uuid4().hex
        self._limits = limits
        self._clock = clock
        self._request_ids = itertools.count(1)
        self._metadata: Metadata | None = None
        self._margin = NetworkMargin()
        self._outstanding = Outstanding()
        self._settled: list[Result] = []
        own_keys = None if keys is None else ClientKeys.load(Path(keys))
        self._connection = Connection(address, limits.max_frame_bytes, context, own_keys)

    @property
    def dropped_replies(self) -> int:
        """Replies to requests that were unknown or already settled (so cancelled ones, too)."""
        return self._outstanding.dropped

    def metadata(self, *, timeout_s: float = 1.0) -> Metadata:
        """Ask what the server serves; what is sent and answered from then on is held to its spec.

        A server that was restarted with another model goes on unnoticed (each chunk has its
        model_id) if that has the same specification; if not, answers come up as `ProtocolError`
        until this is called again.

        Raises:
            ConnectionLostError: no answer within `timeout_s`.
            PolicyError: what the server answered instead.
        """
        reply = self._ask(MetadataRequest, MetadataReply, timeout_s)
        self._metadata = reply.metadata
        return reply.metadata

    def ping(self, *, timeout_s: float = 1.0) -> float:
        """Seconds to the server and back.

        Raises:
            ConnectionLostError: no answer within `timeout_s`.
            PolicyError: what the server answered instead.
        """
        asked_s = self._clock()
        self._ask(PingRequest, Pong, timeout_s)
        return self._clock() - asked_s

    def act(
        self,
        observation: Mapping[str, npt.NDArray[Any]],
        instruction: str,
        *,
        budget_s: float,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        seed: int | None = None,
        best_effort: bool = False,
        due_s: float | None = None,
        timeout_s: float = 1.0,
    ) -> Chunk:
        """Ask for an action_chunk and wait for it.

        The first call also asks for the metadata, at the expense of its budget; call `metadata`
        before if that matters. The arguments are those of `submit`.

        Raises:
            InvalidRequestError: a field or an array is not what it must be.
            CannotServeError: no time or no room for it; `DeadlineError` says what budget would do.
            ServerFaultError: the model failed.
            ProtocolError: the answer is not understood.
            ConnectionLostError: no answer within `timeout_s`.
        """
        called_s = self._clock()
        until_s = called_s + _checked("timeout_s", timeout_s)
        if self._metadata is None:
            self.metadata(timeout_s=timeout_s)
        self._await_connection(until_s)
        request_id = self.submit(
            observation,
            instruction,
            budget_s=budget_s,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            eta=eta,
            seed=seed,
            best_effort=best_effort,
            due_s=called_s if due_s is None else due_s,
            timeout_s=max(until_s - self._clock(), _SPENT_BUDGET_S),
        )
        return self._await(request_id, Chunk)

    def submit(
        self,
        observation: Mapping[str, npt.NDArray[Any]],
        instruction: str,
        *,
        budget_s: float,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        seed: int | None = None,
        best_effort: bool = False,
        due_s: float | None = None,
        timeout_s: float = 1.0,
    ) -> int:
        """Ask for an action_chunk without waiting; `poll` gives the answer.

        Arrays are copied before this returns. They are checked here only once `metadata` has been
        called; else the server checks them, and an error comes through `poll`. So does
        `ConnectionLostError`, if there is no connection or nothing comes within `timeout_s`.

        Args:
            observation: array by name, [obs_steps, …], oldest first.
            instruction: plain words, e.g. "open the drawer".
            budget_s: time from due_s within which the answer is useful.
            num_steps: None lets the server's planner decide; a number is kept exactly, even if
                that makes the answer late.
            guidance_scale: w of Ho & Salimans; None is the checkpoint's default.
            eta: 0 deterministic, 1 ancestral DDPM; None is the checkpoint's default.
            seed: of every random number of the answer; None lets the server draw one.
            best_effort: answer even if the budget cannot be met.
            due_s: instant of the client's clock from which budget_s counts; None is now.
            timeout_s: give up, counted from now, and tell the server so.

        Returns:
            The request_id; ids rise.

        Raises:
            InvalidRequestError: a field or an array is not what it must be; nothing was sent.
            DeadlineError: the budget is spent already, and neither `best_effort` nor `num_steps`
                asks for a late answer; nothing was sent.
        """
        now_s = self._clock()
        _checked("timeout_s", timeout_s)
        budget_s = _checked("budget_s", budget_s)
        if self._metadata is not None:
            self._metadata.spec.validate_observation(observation)
        request_id = next(self._request_ids)
        due_s = now_s if due_s is None else due_s
        left_s = budget_s - (now_s - due_s)
        if left_s > 0:
            left_s -= self._margin.of(left_s)
        elif best_effort or num_steps is not None:
            left_s = _SPENT_BUDGET_S
        else:
            msg = (
                f"budget_s: expected time to be left at sending, got {budget_s:g} s due "
                f"{now_s - due_s:g} s ago; ask sooner, or with best_effort=True"
            )
            raise DeadlineError(msg, request_id=request_id)
        request = ActRequest(
            session_id=self.session_id,
            request_id=request_id,
            observation=observation,
            instruction=instruction,
            budget_s=left_s,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            eta=eta,
            seed=seed,
            best_effort=best_effort,
        )
        self._post(request, Sent(ActionChunk, now_s, due_s, budget_s, timeout_s))
        return request_id

    def cancel(self, request_id: int) -> None:
        """Say that the answer to a `submit` is no longer wanted: it costs the server nothing more.

        It comes up in `poll` as a `CancelledError`, unless its answer is there already; what the
        server still sends is dropped. Does not wait. A request whose timeout_s has passed is
        cancelled by itself.
        """
        self._collect()
        error = self._outstanding.cancel(request_id)
        if error is not None:
            self._settled.append(error)
            self._send_cancel(request_id)

    def poll(self, timeout_s: float = 0.0) -> list[Chunk | PolicyError]:
        """What has come of earlier `submit` calls: chunks and errors, each with its request_id.

        Every submitted request comes up exactly once. An error whose request_id is None belongs to
        no request: a message that could not be decoded; a few hundred of those are kept.

        Args:
            timeout_s: wait so long for the first result, in whole milliseconds rounded down, so
                that a caller who paces a loop with it is never late.
        """
        until_s = self._clock() + timeout_s
        self._collect()
        while not self._settled and (left_ms := int((until_s - self._clock()) * 1000)) > 0:
            self._collect(left_ms)
        results = [r for r in self._settled if isinstance(r, (Chunk, PolicyError))]
        self._settled.clear()
        return results

    def close(self) -> None:
        """Close the socket at once; what is outstanding is forgotten."""
        self._connection.close()

    def __enter__(self) -> PolicyClient:
        """Nothing to do: connecting began with the constructor."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _ask(
        self,
        request_type: type[MetadataRequest | PingRequest],
        reply_type: type[T],
        timeout_s: float,
    ) -> T:
        """One question that is not about actions, and its answer."""
        until_s = self._clock() + _checked("timeout_s", timeout_s)
        self._await_connection(until_s)
        now_s = self._clock()
        request = request_type(next(self._request_ids))
        self._post(request, Sent(reply_type, now_s, now_s, timeout_s, until_s - now_s))
        return self._await(request.request_id, reply_type)

    def _post(self, request: Request, sent: Sent) -> None:
        """Send, or settle as lost if there is nobody to send to."""
        if self._connection.send(encode(request, self._limits)):
            self._outstanding.add(request.request_id, sent)
        else:
            msg = f"request {request.request_id}: not sent, no connection to {self.address}"
            self._settled.append(ConnectionLostError(msg, request_id=request.request_id))

    def _send_cancel(self, request_id: int) -> None:
        """Or not, if there is no connection: the request is lost anyhow then."""
        self._connection.send(encode(CancelRequest(self.session_id, request_id), self._limits))

    def _collect(self, at_most_ms: int = 0) -> None:
        """Settle whatever has arrived or expired; waits so long, at most, for the first of it."""
        wait_ms = at_most_ms and self._until_expiry_ms(at_most_ms)
        for _ in range(_MAX_REPLIES_PER_COLLECT):
            frames = self._connection.receive(wait_ms)
            if frames is None:
                break
            wait_ms = 0
            now_s = self._clock()
            reply: Message | PolicyError
            try:
                reply = decode(frames, self._limits)
            except PolicyError as error:
                reply = error
            result = self._outstanding.settle(reply, now_s)
            if isinstance(result, Chunk):
                self._margin.add(result.round_trip_s, result.timing.total_s)
                result = self._checked_spec(result)
            nobodys = result is not None and result.request_id is None
            if result is not None and not (nobodys and len(self._settled) >= _MAX_SETTLED):
                self._settled.append(result)
        for sent, lost in self._outstanding.expire(self._clock()):
            self._settled.append(lost)
            if sent.expects is ActionChunk and lost.request_id is not None:
                self._send_cancel(lost.request_id)

    def _checked_spec(self, chunk: Chunk) -> Chunk | ProtocolError:
        """Its actions may mean anything if they are not of the specification that we know."""
        known = self._metadata
        if known is None or chunk.spec_id == known.spec_id:
            return chunk
        msg = (
            f"reply: expected actions of {known.model_id}'s specification ({known.spec_id}), got "
            f"some of {chunk.model_id}'s ({chunk.spec_id}); the server serves another kind of "
            "policy now: call metadata() again if it is one for this robot"
        )
        return ProtocolError(msg, request_id=chunk.request_id)

    def _until_expiry_ms(self, at_most_ms: int) -> int:
        """Until the next request expires, but not longer."""
        left_ms = (self._outstanding.next_expiry_s - self._clock()) * 1000
        return at_most_ms if left_ms > at_most_ms else max(0, math.ceil(left_ms))

    def _await(self, request_id: int, reply_type: type[T]) -> T:
        """The answer to one request, or its error raised; other results stay for `poll`."""
        before = len(self._settled)
        while (result := self._settled_of(request_id, before)) is None:
            self._collect(_LONGEST_WAIT_MS)  # ends sooner: the request expires
        self._settled.remove(result)
        self._outstanding.forget(request_id)
        if isinstance(result, PolicyError):
            raise result
        return cast("T", result)  # Outstanding lets nothing else through

    def _settled_of(self, request_id: int, before: int) -> Result | None:
        """What a request was settled with; `before` it was asked there were so many settled."""
        for result in self._settled:
            if result.request_id == request_id:
                return result
        for result in self._settled[before:]:
            lost = isinstance(result, ProtocolError) and result.request_id is None
            # what cannot be decoded, and came since, can only be the answer to the only one
            if lost and self._outstanding.is_only(request_id):
                return result
        return None

    def _await_connection(self, until_s: float) -> None:
        """Return once there is one; the usual case asks nothing else."""
        if self._connection.wait_connected():
            return
        left_ms = max(0, math.ceil((until_s - self._clock()) * 1000))
        if not self._connection.wait_connected(left_ms):
            msg = f"no connection to {self.address}; is the server running there?"
            raise ConnectionLostError(msg)


def _checked(field: str, seconds: float) -> float:
    try:
        return positive_seconds(field, seconds)
    except ValueError as error:
        raise InvalidRequestError(str(error)) from None
