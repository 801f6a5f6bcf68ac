"""`python -m policy_server …`: serve a checkpoint over ZeroMQ."""

from __future__ import annotations

import logging
import sys

import tyro

from policy_server.server import ServerConfig, serve


def main() -> None:
    """Entry point."""
    config = tyro.cli(
        ServerConfig,
        prog="python -m policy_server",
        description="Serve a policy over ZeroMQ. Prints one line `ready ADDRESS …` when answers "
        "can be in time; Ctrl-C or SIGTERM finishes what is in service and exits.",
    )
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s"
    )
    try:
        serve(config)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
