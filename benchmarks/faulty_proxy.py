"""A TCP proxy between clients and a server that does to their messages what bad networks do.

TCP delivers every byte once and in order, or not at all. So what a network can do to a connection
is to be slow, to cut it at any byte, to reset it, or to fall silent; those are done to the bytes.
To lose, repeat or reorder something is the doing of software between two connections, and is done
to whole messages: the stream is cut where ZMTP, ZeroMQ's protocol (rfc.zeromq.org/spec/23), ends
them. With keys each part of a message is a message here (which part is the last is encrypted), so
drop, duplicate and reorder are for connections without.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

_GREETING_BYTES = 64
_MORE, _LONG, _COMMAND = 1, 2, 4  # flags of a ZMTP frame
_CHECK_EVERY_S = 0.005
_RST_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for 0 s

Towards = Literal["server", "client"]


@dataclass(frozen=True)
class Faults:
    """What happens to messages; the chances (0..1 of a message, independent) sum to 1 or less.

    Attributes:
        delay_s: each message is passed on so much later; their order stays.
        drop: chance that it disappears.
        duplicate: chance that it is passed on twice.
        reorder: chance that it is passed on after the one that follows it, if one does.
        truncate: chance that only the first half of its bytes is, and the connection is closed.
        reset: chance that both ends get a TCP reset in its place.
        black_hole: nothing is passed on, nor any connection made or closed; what waits goes on
            when this ends, as it does when TCP tries again.
        towards: whose messages the others happen to; both if None.
    """

    delay_s: float = 0.0
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    truncate: float = 0.0
    reset: float = 0.0
    black_hole: bool = False
    towards: Towards | None = None

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        if not self.delay_s >= 0:
            msg = f"delay_s: expected 0 or more, got {self.delay_s}"
            raise ValueError(msg)
        chances = [getattr(self, kind) for kind in _KINDS]
        if min(chances) < 0 or sum(chances) > 1:
            msg = f"{', '.join(_KINDS)}: expected chances whose sum is 0..1, got {chances}"
            raise ValueError(msg)

    def draw(self, rng: random.Random, towards: Towards) -> str | None:
        """Which of the kinds that have a chance happens to one message; None mostly."""
        if self.towards not in (None, towards):
            return None
        chances = [getattr(self, kind) for kind in _KINDS]
        return rng.choices([*_KINDS, None], [*chances, max(0.0, 1 - sum(chances))])[0]


_KINDS = ("drop", "duplicate", "reorder", "truncate", "reset")


@dataclass(frozen=True)
class _Item:
    """Bytes to pass on, when by the event loop's clock, and how the connection ends then."""

    release_s: float
    data: bytes
    end: Literal["close", "reset"] | None = None


class FaultyProxy:
    """Passes everything on, on a thread of its own, but for the present `faults`.

    Example:
        >>> with FaultyProxy("tcp://127.0.0.1:5555") as proxy:  # doctest: +SKIP
        ...     policy = PolicyClient(proxy.address)
        ...     proxy.faults = Faults(drop=0.1, towards="client")

    Attributes:
        address: for clients.
        faults: may be assigned at any time; counts from the next message on.
        counts: faults so far, by the name of the field.
        heard: what came from either side, greetings and commands too, if it was asked to record.
    """

    def __init__(self, server_address: str, *, seed: int = 0, record: bool = False) -> None:
        """Listen on a free port of loopback; connect to the server when a client does.

        Args:
            server_address: tcp://HOST:PORT; nobody needs to be there yet, or always.
            seed: of the faults that have a chance.
            record: keep what is heard.

        Raises:
            ValueError: another kind of address.
        """
        match = re.fullmatch(r"tcp://(.+):(\d+)", server_address)
        if match is None:
            msg = f"server_address: expected tcp://HOST:PORT, got {server_address}"
            raise ValueError(msg)
        self._server = (match[1], int(match[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.faults = Faults()
        self.counts: Counter[str] = Counter()
        self.heard = bytearray()
        self._record = record
        self._rng = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="faulty proxy")

    def __enter__(self) -> FaultyProxy:
        """Begin to accept connections."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every connection."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # its end cancels all tasks
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._relay, sock=self._listener)
        await self._stop.wait()
        server.close()  # without waiting for its connections, which may be in a black hole

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, and the one to the server that belongs to it."""
        writers = [writer]
        tasks: list[asyncio.Task[bool]] = []
        try:
            await self._hold()
            far_reader, far_writer = await asyncio.open_connection(*self._server)
            writers.append(far_writer)
            tasks.append(asyncio.create_task(self._pump(reader, far_writer, "server")))
            tasks.append(asyncio.create_task(self._pump(far_reader, writer, "client")))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if any(task.exception() is None and task.result() for task in done):
                for end in writers:
                    end.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE
                    )
                    end.transport.abort()
        except OSError:
            pass  # nobody is there: the client's connection ends, too
        finally:
            for task in tasks:
                task.cancel()
            for end in writers:
                end.close()

    async def _hold(self) -> None:
        while self.faults.black_hole:
            await asyncio.sleep(_CHECK_EVERY_S)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, towards: Towards
    ) -> bool:
        """Pass on one direction of a connection until it ends; whether by a reset."""
        items: asyncio.Queue[_Item] = asyncio.Queue()
        filling = asyncio.create_task(self._fill(items, reader, towards))
        try:
            while True:
                item = await items.get()
                await asyncio.sleep(item.release_s - self._loop.time())
                await self._hold()
                writer.write(item.data)
                await writer.drain()
                if item.end is not None:
                    return item.end == "reset"
        finally:
            filling.cancel()

    async def _fill(
        self, items: asyncio.Queue[_Item], reader: asyncio.StreamReader, towards: Towards
    ) -> None:
        """What is to be passed on of what is heard, faults and all."""
        behind: list[bytes] = []  # to be passed on after the next message
        async for data, is_message in _split(reader):
            faults = self.faults
            if self._record:
                self.heard += data
            kind = faults.draw(self._rng, towards) if is_message else None
            if kind is not None:
                self.counts[kind] += 1
            delayed = towards == faults.towards or faults.towards is None
            release_s = self._loop.time() + (faults.delay_s if delayed else 0.0)
            match kind:
                case "drop":
                    continue
                case "reorder":
                    behind.append(data)
                    continue
                case "truncate":
                    items.put_nowait(_Item(release_s, data[: len(data) // 2], "close"))
                case "reset":
                    items.put_nowait(_Item(release_s, b"", "reset"))
                case "duplicate":
                    items.put_nowait(_Item(release_s, data + data))
                case _:
                    items.put_nowait(_Item(release_s, data))
            if is_message:
                items.put_nowait(_Item(release_s, b"".join(behind)))
                behind.clear()
        items.put_nowait(_Item(self._loop.time(), b"", "close"))


async def _split(reader: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, bool]]:
    """The bytes of one direction, cut behind each ZMTP message; whether it is one of the user's."""
    left = _GREETING_BYTES
    message = b""
    try:
        while left:
            some = await reader.read(left)
            if not some:
                return
            left -= len(some)
            yield some, False  # at once: each side waits for the beginning of the other's
        while True:
            head = await reader.readexactly(1)
            size = await reader.readexactly(8 if head[0] & _LONG else 1)
            frame = head + size + await reader.readexactly(int.from_bytes(size, "big"))
            if head[0] & _COMMAND:
                yield frame, False
                continue
            message += frame
            if not head[0] & _MORE:
                yield message, True
                message = b""
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # part of a message is none: ZeroMQ would not deliver it either
