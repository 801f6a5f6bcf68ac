"""Messages in, messages out: what the server answers to each request. Knows no socket.

Between the reactor (bytes) and the engine (scheduling): resolves defaults, checks a request against
the policy's specification, has instructions embedded, and words the replies.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from client.errors import (
    CancelledError,
    InvalidRequestError,
    OverloadedError,
    PolicyError,
    ServerFaultError,
    SupersededError,
)
from client.messages import (
    ActionChunk,
    ActRequest,
    CancelRequest,
    ErrorReply,
    Metadata,
    MetadataReply,
    MetadataRequest,
    PingRequest,
    Pong,
    Reply,
    Request,
    Timing,
)
from models.samplers import takes_eta
from policy_server.engine import SHUTTING_DOWN, SUPERSEDED
from policy_server.instruction_cache import Embedding, InstructionCache
from policy_server.requests import Answer, EngineRequest, Outcome, Refusal, RequestKey, Scheduler

log = logging.getLogger(__name__)

_NEW_INSTRUCTIONS = 4
"""Of the requests that a client may have inside, one in so many may wait for its instruction's
encoding: there is room for few of them."""

_UNREAD_S = 0.02
"""Requests that may have waited unread for longer are refused: their budgets count from when they
are read, so they would be answered long after their robots have given up, and so would all after
them. Refusing is faster than they come, so it does not last."""

Address = bytes
"""Where a reply goes; opaque here."""


class _Asked(NamedTuple):
    """An act request that waits for its instruction's embedding."""

    address: Address
    request: ActRequest
    arrived_s: float


class Service:
    """One policy, served; another model of it may take over between two network calls.

    Args:
        engine: does the work, call by call.
        instructions: embeddings by text.
        metadata: what this server says of itself; also holds the defaults.
        clock: the engine's clock.
        reply: takes each reply and where it goes, as soon as it exists.
    """

    def __init__(
        self,
        engine: Scheduler,
        instructions: InstructionCache,
        metadata: Metadata,
        clock: Callable[[], float],
        reply: Callable[[Address, Reply], None],
    ) -> None:
        self._engine = engine
        self._instructions = instructions
        self._metadata = metadata
        self._replaced: list[tuple[Scheduler, Metadata]] = []
        self._clock = clock
        self._reply = reply
        self._addresses: dict[RequestKey, Address] = {}
        self._awaiting: dict[RequestKey, _Asked] = {}
        self._inside_of: dict[Address, int] = {}
        self._draining = False
        self._random = random.Random()  # seeds are told to the client: they need not be secret

    @property
    def description(self) -> str:
        """For the line that says the server is ready."""
        return f"model={self._metadata.model_id} backend={self._metadata.backend}"

    @property
    def busy(self) -> bool:
        """Whether there is a network call to make."""
        return self._engine.busy or bool(self._replaced)

    @property
    def idle(self) -> bool:
        """Whether no request is anywhere inside."""
        return not self.busy and not self._awaiting

    def replace_model(self, engine: Scheduler, metadata: Metadata) -> None:
        """Serve with another model from now on; what the one before has admitted, it finishes.

        Args:
            engine: with nothing inside.
            metadata: with the specification of the model before.
        """
        if self._engine.busy:
            self._replaced.append((self._engine, self._metadata))
        self._engine, self._metadata = engine, metadata

    def _models(self) -> list[tuple[Scheduler, Metadata]]:
        """Those with requests inside, and the one that is served; oldest first."""
        return [*self._replaced, (self._engine, self._metadata)]

    def handle(
        self, address: Address, request: Request, arrived_s: float, unread_s: float = 0.0
    ) -> None:
        """Take one decoded request; it is answered now or later, but exactly once.

        The exception is a `CancelRequest`: what it cancels is answered, and it is not.

        Args:
            address: whose it is.
            request: what is asked.
            arrived_s: when it was read.
            unread_s: for how long, at most, it was there before.

        Raises:
            InvalidRequestError, OverloadedError, SupersededError: to be answered by the caller,
                like errors of decoding.
        """
        match request:
            case ActRequest():
                self._handle_act(_Asked(address, request, arrived_s), unread_s)
            case CancelRequest():
                self._cancel(address, (request.session_id, request.request_id))
            case PingRequest():
                self._reply(address, Pong(request.request_id))
            case MetadataRequest():
                self._reply(address, MetadataReply(request.request_id, self._metadata))

    def _handle_act(self, asked: _Asked, unread_s: float) -> None:
        request = asked.request
        key = (request.session_id, request.request_id)
        if key in self._addresses or key in self._awaiting:
            msg = f"request_id: {request.request_id} is being served already; ids must rise"
            # without the number: the error would pass for the answer, which is still to come
            self._reply(asked.address, ErrorReply(None, InvalidRequestError.code, msg))
            return
        if self._draining:
            raise OverloadedError(SHUTTING_DOWN)
        if unread_s > _UNREAD_S:
            msg = f"queue: requests may wait unread for {unread_s * 1e3:.0f} ms; send fewer"
            raise OverloadedError(msg)
        most = self._metadata.limits["max_in_flight_per_client"]
        if self._inside_of.get(asked.address, 0) >= most:
            msg = f"queue: {most} requests of this client are inside already; wait for answers"
            raise OverloadedError(msg)
        if self._awaiting and any(k[0] == key[0] and k[1] > key[1] for k in self._awaiting):
            raise SupersededError(SUPERSEDED)
        self._check(request)
        embedding = self._instructions.get(request.instruction)
        if embedding is None:
            self._await_embedding(asked)
        else:
            self._submit(asked, embedding)
            if self._awaiting and key in self._addresses:  # a refused one supersedes nothing
                self._supersede_awaiting(key)

    def _check(self, request: ActRequest) -> None:
        """Whether the model that is served can do what is asked."""
        self._metadata.spec.validate_observation(request.observation)
        most = self._metadata.max_steps
        if request.num_steps is not None and request.num_steps > most:
            msg = f"num_steps: expected 1..{most} (T of this policy), got {request.num_steps}"
            raise InvalidRequestError(msg)
        limit = self._metadata.limits["max_guidance_scale"]
        if request.guidance_scale is not None and abs(request.guidance_scale) > limit:
            msg = f"guidance_scale: expected −{limit:g}..{limit:g}, got {request.guidance_scale:g}"
            raise InvalidRequestError(msg)
        sampler = self._metadata.defaults.sampler
        if request.eta and not takes_eta(sampler):
            msg = f"eta: this policy is sampled with {sampler}, which takes 0 only; leave it out"
            raise InvalidRequestError(msg)

    def _await_embedding(self, asked: _Asked) -> None:
        request = asked.request
        key = (request.session_id, request.request_id)
        others = sum(session != request.session_id for session, _ in self._awaiting)
        if others >= self._metadata.limits["max_in_flight"]:
            msg = f"queue: {others} requests wait for their instruction's encoding already"
            raise OverloadedError(msg)
        most = max(1, self._metadata.limits["max_in_flight_per_client"] // _NEW_INSTRUCTIONS)
        mine = sum(
            other.address == asked.address and session != request.session_id
            for (session, _), other in self._awaiting.items()
        )
        if mine >= most:
            msg = f"queue: {mine} requests of this client wait for their instruction's encoding"
            raise OverloadedError(msg)
        self._instructions.ask(request.instruction)
        self._awaiting[key] = asked
        self._supersede_awaiting(key)

    def _supersede_awaiting(self, newer: RequestKey) -> None:
        """Refuse what the same session asked before and is not yet encoded."""
        for key in [k for k in self._awaiting if k[0] == newer[0] and k[1] < newer[1]]:
            self._give_up_awaiting(key, SupersededError(SUPERSEDED))

    def _give_up_awaiting(self, key: RequestKey, error: PolicyError) -> None:
        """Refuse it, and have its instruction not encoded if nobody else asked for that."""
        old = self._awaiting.pop(key)
        self._refuse(old, error)
        instruction = old.request.instruction
        if all(asked.request.instruction != instruction for asked in self._awaiting.values()):
            self._instructions.forget(instruction)

    def _cancel(self, address: Address, key: RequestKey) -> None:
        """Give up a request, if it is inside and was asked from this address."""
        if self._addresses.get(key) == address:
            for engine, metadata in self._models():
                for refusal in engine.cancel(key):
                    self._answer(refusal, metadata)
        elif key in self._awaiting and self._awaiting[key].address == address:
            self._give_up_awaiting(key, CancelledError("cancelled by the client"))

    def _refuse(self, asked: _Asked, error: PolicyError) -> None:
        error.request_id = asked.request.request_id
        self._reply(asked.address, ErrorReply.from_error(error))

    def collect_instructions(self) -> None:
        """Hand requests whose instruction has been embedded meanwhile to the engine."""
        if not self._instructions.pending:
            return
        for instruction, failure in self._instructions.collect().items():
            ready = [k for k, a in self._awaiting.items() if a.request.instruction == instruction]
            for key in ready:
                asked = self._awaiting.pop(key)
                embedding = self._instructions.get(instruction)
                if embedding is None:
                    fault = f"the instruction could not be encoded: {type(failure).__name__}"
                    self._refuse(asked, ServerFaultError(fault))
                else:
                    self._submit_late(asked, embedding)

    @property
    def encoding_instructions(self) -> bool:
        """Whether `collect_instructions` will have something to do soon."""
        return self._instructions.pending

    def _submit(self, asked: _Asked, embedding: Embedding) -> None:
        request, defaults = asked.request, self._metadata.defaults
        key = (request.session_id, request.request_id)
        w = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
        engine_request = EngineRequest(
            key=key,
            observation=request.observation,
            instruction=embedding,
            arrived_s=asked.arrived_s,
            deadline_s=asked.arrived_s + request.budget_s,
            num_steps=request.num_steps,
            # as the network sees it, so that the number of rows follows from the same value
            guidance_scale=float(np.float32(w)),
            eta=defaults.eta if request.eta is None else request.eta,
            seed=self._random.getrandbits(63) if request.seed is None else request.seed,
            best_effort=request.best_effort,
        )
        refusals = self._engine.submit(engine_request)
        self._addresses[key] = asked.address
        self._inside_of[asked.address] = self._inside_of.get(asked.address, 0) + 1
        for refusal in refusals:
            self._answer(refusal, self._metadata)

    def _submit_late(self, asked: _Asked, embedding: Embedding) -> None:
        """Outside of its message's turn, so whatever is wrong must be answered here."""
        try:
            self._check(asked.request)  # again: the model may be another one meanwhile
            self._submit(asked, embedding)
        except PolicyError as error:
            self._refuse(asked, error)
        except Exception as error:
            log.exception("request %s could not be handled", asked.request.request_id)
            self._refuse(asked, ServerFaultError(f"internal: {type(error).__name__}"))

    def advance(self) -> None:
        """Have the engine do one piece of work, and send what came out of it.

        While a replaced model finishes, it and the new one take turns, call by call. A model that
        fails costs the request that it failed on, and nobody else's.
        """
        for engine, metadata in self._models():
            try:
                outcomes = engine.advance()
            except Exception as error:  # the boundary to the model
                log.exception("the model failed")
                fault = ServerFaultError(f"the model failed: {type(error).__name__}")
                outcomes = [*engine.fail(fault)]
            for outcome in outcomes:
                self._answer(outcome, metadata)
        if self._replaced:
            self._replaced = [model for model in self._replaced if model[0].busy]

    def drain(self) -> None:
        """Take no new requests and refuse those that wait; what is in service is finished."""
        self._draining = True
        for engine, metadata in self._models():
            for refusal in engine.drain():
                self._answer(refusal, metadata)
        while self._awaiting:
            _, asked = self._awaiting.popitem()
            self._refuse(asked, OverloadedError(SHUTTING_DOWN))

    def give_up(self) -> None:
        """Refuse whatever is inside, although some of it has begun."""
        for key in list(self._addresses):
            for engine, metadata in self._models():
                for refusal in engine.cancel(key):
                    shutting_down = Refusal(refusal.request, OverloadedError(SHUTTING_DOWN))
                    self._answer(shutting_down, metadata)
        self._replaced.clear()

    def close(self) -> None:
        """Stop the thread that encodes instructions."""
        self._instructions.close()

    def _answer(self, outcome: Outcome, metadata: Metadata) -> None:
        """Reply for the model that this is the metadata of."""
        key = outcome.request.key
        reply: Reply
        try:
            if isinstance(outcome, Answer):
                reply = self._chunk(outcome, metadata)
            else:
                reply = _told(outcome)
        except ValueError as error:  # what the model made is not an answer
            log.exception("request %s: unusable answer", key[1])
            reply = ErrorReply.from_error(ServerFaultError(str(error), request_id=key[1]))
        address = self._addresses.pop(key)
        self._inside_of[address] -= 1
        if not self._inside_of[address]:
            del self._inside_of[address]
        self._reply(address, reply)

    def _chunk(self, answer: Answer, metadata: Metadata) -> ActionChunk:
        request = answer.request
        return ActionChunk(
            request_id=request.key[1],
            actions=answer.actions,
            num_steps=len(answer.timesteps),
            timesteps=answer.timesteps,
            nfe=answer.nfe,
            rows_per_call=answer.rows_per_call,
            deadline_met=answer.deadline_met,
            model_id=metadata.model_id,
            spec_id=metadata.spec_id,
            guidance_scale=request.guidance_scale,
            eta=request.eta,
            seed=request.seed,
            timing=Timing(
                queue_s=answer.queue_s,
                encode_s=answer.encode_s,
                denoise_s=answer.denoise_s,
                total_s=self._clock() - request.arrived_s,
            ),
        )


def _told(refusal: Refusal) -> ErrorReply:
    refusal.error.request_id = refusal.request.key[1]
    return ErrorReply.from_error(refusal.error)
