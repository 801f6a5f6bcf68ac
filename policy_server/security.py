"""Who may connect: CurveZMQ with a list of clients' public keys, and where one may do without."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zmq
from tyro.conf import Positional
from zmq.auth import create_certificates
from zmq.auth.thread import ThreadAuthenticator

from client.keys import CLIENT, PUBLIC, SECRET, SERVER, KeyPair, load_pair, load_public

CLIENTS = "clients"


@dataclass(frozen=True)
class ServerKeys:
    """What a server needs.

    Attributes:
        own: by which clients know it.
        clients: folder with a public key file for each client that may connect.
    """

    own: KeyPair
    clients: Path

    @classmethod
    def load(cls, folder: Path) -> ServerKeys:
        """Read server.key_secret, and check that clients/ has keys.

        Raises:
            InvalidRequestError: a file is missing or is no key, or others may read the secret.
            ValueError: no client could connect.
        """
        clients = folder / CLIENTS
        files = sorted(clients.glob(f"*{PUBLIC}"))
        if not files:
            msg = f"keys: no client's key in {clients}; python -m policy_server keygen makes them"
            raise ValueError(msg)
        for file in files:
            load_public(file)
        return cls(load_pair(folder / f"{SERVER}{SECRET}"), clients)

    @contextmanager
    def protect(self, context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[None]:
        """Ask every client that connects to a socket of this context for its key.

        Whoever has none on the list is turned away by ZeroMQ before a message is read.
        """
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        try:
            authenticator.configure_curve(domain="*", location=str(self.clients))
            yield
        finally:
            authenticator.stop()

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Make a socket a server of this identity, before it is bound."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.own.secret)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.own.public)


@dataclass(frozen=True)
class KeygenConfig:
    """What `python -m policy_server keygen` takes.

    Attributes:
        keys: folder of the server's keys; what is there already stays.
        clients: names, one a robot. KEYS/NAME is what to copy to it, and to delete here then.
    """

    keys: Positional[Path]
    clients: Positional[tuple[str, ...]]

    def __post_init__(self) -> None:
        """Check that names are plain file names that are not taken."""
        if not self.clients:
            raise ValueError("clients: expected at least one name, got none")
        for name in self.clients:
            if not name.replace("-", "").replace("_", "").isalnum() or name == CLIENTS:
                msg = f"clients: expected letters, digits, - and _, got {name!r}"
                raise ValueError(msg)
            if (self.keys / CLIENTS / f"{name}{PUBLIC}").exists():
                msg = (
                    f"clients: {name!r} has a key already in {self.keys / CLIENTS}; delete it first"
                )
                raise ValueError(msg)


def keygen(config: KeygenConfig) -> None:
    """Make the server's keys, if there are none, and those of each client."""
    before = os.umask(0o077)  # nobody else may read a secret, not even for a moment
    try:
        clients = config.keys / CLIENTS
        clients.mkdir(parents=True, exist_ok=True)
        if not (config.keys / f"{SERVER}{SECRET}").exists():
            create_certificates(config.keys, SERVER)
        server = (config.keys / f"{SERVER}{PUBLIC}").read_bytes()
        for name in config.clients:
            folder = config.keys / name
            folder.mkdir()
            create_certificates(folder, CLIENT)
            (folder / f"{CLIENT}{PUBLIC}").rename(clients / f"{name}{PUBLIC}")
            (folder / f"{SERVER}{PUBLIC}").write_bytes(server)
            sys.stdout.write(
                f"{folder}: move it to the robot {name}, which then uses it as --keys\n"
            )
    finally:
        os.umask(before)
    sys.stdout.write(f"{config.keys}: the server's, as --keys {config.keys}\n")


def check_exposure(bind: str, *, protected: bool, unencrypted: bool) -> None:
    """Refuse to be reached from other machines by anybody, unless that is what is wanted.

    Args:
        bind: ZeroMQ address.
        protected: there are keys.
        unencrypted: it was asked for in so many words.

    Raises:
        ValueError: other machines could connect, and nothing protects.
    """
    if protected or unencrypted or is_local(bind):
        return
    msg = (
        f"--bind {bind}: other machines could connect, unencrypted and unasked; "
        "give --keys (python -m policy_server keygen makes them) or --unencrypted"
    )
    raise ValueError(msg)


def is_local(bind: str) -> bool:
    """Whether only this machine can connect to an address."""
    transport, _, rest = bind.partition("://")
    if transport in {"ipc", "inproc"}:
        return True
    host = rest.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # an interface's name, or all of them
        return False
