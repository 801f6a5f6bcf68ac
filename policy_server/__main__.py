"""`python -m policy_server …`: serve a checkpoint over ZeroMQ."""

from __future__ import annotations

import logging
import sys

import tyro

from client.errors import PolicyError
from policy_server.security import KeygenConfig, keygen
from policy_server.server import ServerConfig, serve


def main() -> None:
    """Entry point."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s"
    )
    try:
        _run(sys.argv[1:])
    except (OSError, ValueError, RuntimeError, PolicyError) as error:
        sys.exit(f"error: {error}")


def _run(arguments: list[str]) -> None:
    if arguments[:1] == ["keygen"]:
        keygen(
            tyro.cli(
                KeygenConfig,
                args=arguments[1:],
                prog="python -m policy_server keygen",
                description="Make keys, so that only these clients can connect, encrypted.",
            )
        )
        return
    config = tyro.cli(
        ServerConfig,
        args=arguments,
        prog="python -m policy_server",
        description="Serve a policy over ZeroMQ. Prints one line `ready ADDRESS …` when answers "
        "can be in time; Ctrl-C or SIGTERM finishes what is in service and exits. "
        "`python -m policy_server keygen --help` tells how to let other machines in.",
    )
    serve(config)


if __name__ == "__main__":
    main()
