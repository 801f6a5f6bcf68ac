"""Keys of CurveZMQ (RFC 26): who may talk to a server, and nobody else can read along.

Files are those of `zmq.auth`: NAME.key holds a public key, NAME.key_secret both. They are made by
`python -m policy_server keygen`, readable by their owner only.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path

from zmq.auth import load_certificate

from client.errors import InvalidRequestError

SERVER, CLIENT = "server", "client"
PUBLIC, SECRET = ".key", ".key_secret"


@dataclass(frozen=True)
class KeyPair:
    """Of one side; both are Z85 text, 40 bytes. The secret is never shown."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class ClientKeys:
    """What a robot needs.

    Attributes:
        own: by which the server knows it.
        server_public: by which it knows the server.
    """

    own: KeyPair
    server_public: bytes

    @classmethod
    def load(cls, folder: Path) -> ClientKeys:
        """Read client.key_secret and server.key.

        Raises:
            InvalidRequestError: one is missing, is no key, or others may read the secret.
        """
        return cls(
            load_pair(folder / f"{CLIENT}{SECRET}"), load_public(folder / f"{SERVER}{PUBLIC}")
        )


def load_pair(path: Path) -> KeyPair:
    """Both keys of a secret file.

    Raises:
        InvalidRequestError: it is missing, holds no secret key, or others may read it.
    """
    public, secret = _load(path)
    if secret is None:
        msg = f"keys: expected a secret key in {path}, got a public one"
        raise InvalidRequestError(msg)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        msg = f"keys: {path} can be read by others; run chmod 600 {path}, or make new keys"
        raise InvalidRequestError(msg)
    return KeyPair(public, secret)


def load_public(path: Path) -> bytes:
    """The public key of a file.

    Raises:
        InvalidRequestError: it is missing or holds no key.
    """
    return _load(path)[0]


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = load_certificate(path)
    except (OSError, ValueError) as error:
        msg = f"keys: expected a key in {path} ({error}); python -m policy_server keygen makes them"
        raise InvalidRequestError(msg) from error
    for key in (public, secret):
        if key is not None and len(key) != 40:
            msg = f"keys: expected 40 characters in {path}, got {len(key)}"
            raise InvalidRequestError(msg)
    return public, secret
