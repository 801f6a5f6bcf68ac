"""Embeddings of instructions, computed once each on a worker thread so that nobody else waits.

Bounded in every direction: cached texts, texts waiting to be embedded, and the share of time that
is spent on it: whoever keeps saying something new must not take a core from those who do not.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from client.errors import OverloadedError

Embedding = npt.NDArray[np.float32]

_REST = 1.0
"""After an embedding, so many times the processor time that it took."""


class InstructionCache:
    """Least-recently-used embeddings by text.

    Args:
        encode: a batch of texts → float32 [n, INSTRUCTION_DIM]; called on the worker thread only.
        max_cached: texts kept.
        max_pending: texts waiting to be embedded at one time.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str]], Embedding],
        max_cached: int = 1024,
        max_pending: int = 16,
    ) -> None:
        self._encode = encode
        self._max_cached = max_cached
        self._max_pending = max_pending
        self._cached: OrderedDict[str, Embedding] = OrderedDict()
        self._pending: dict[str, Future[Embedding]] = {}
        self._rests_until_s = 0.0  # of the worker thread only
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="instructions")

    @property
    def pending(self) -> bool:
        """Whether an embedding is being computed."""
        return bool(self._pending)

    def get(self, instruction: str) -> Embedding | None:
        """The embedding, float32 [INSTRUCTION_DIM], or None if it has to be asked for."""
        embedding = self._cached.get(instruction)
        if embedding is not None:
            self._cached.move_to_end(instruction)
        return embedding

    def ask(self, instruction: str) -> None:
        """Have an unknown instruction embedded; `collect` tells when it is done.

        Raises:
            OverloadedError: too many are waiting already.
        """
        if instruction in self._pending:
            return
        if len(self._pending) >= self._max_pending:
            msg = (
                f"instruction: {self._max_pending} new instructions are being encoded already; "
                "ask again in a moment"
            )
            raise OverloadedError(msg)
        self._pending[instruction] = self._worker.submit(self._embed, instruction)

    def _embed(self, instruction: str) -> Embedding:
        time.sleep(max(0.0, self._rests_until_s - time.monotonic()))
        begun_s = time.thread_time()
        try:
            embedding: Embedding = self._encode([instruction])[0]
        finally:
            worked_s = time.thread_time() - begun_s
            self._rests_until_s = time.monotonic() + _REST * worked_s
        return embedding

    def forget(self, instruction: str) -> None:
        """Nobody waits for it any more; it is not embedded unless that has begun."""
        future = self._pending.get(instruction)
        if future is not None and future.cancel():
            del self._pending[instruction]

    def collect(self) -> dict[str, BaseException | None]:
        """Texts that are done since the last call, each with the error it failed with, if any."""
        done = {text: future for text, future in self._pending.items() if future.done()}
        for text, future in done.items():
            del self._pending[text]
            if future.exception() is None:
                self._cached[text] = future.result()
        while len(self._cached) > self._max_cached:
            self._cached.popitem(last=False)
        return {text: future.exception() for text, future in done.items()}

    def close(self) -> None:
        """Stop the worker; what is not begun is dropped."""
        self._worker.shutdown(wait=True, cancel_futures=True)
