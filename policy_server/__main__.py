"""`python -m policy_server …`: serve a checkpoint over ZeroMQ."""

from __future__ import annotations

import logging
import sys

import tyro

from client.errors import PolicyError
from policy_server import doctor
from policy_server.doctor import DoctorConfig
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
    if arguments[:1] == ["doctor"]:
        doctor.main(
            tyro.cli(
                DoctorConfig,
                args=arguments[1:],
                prog="python -m policy_server doctor",
                description="What on this machine threatens deadlines, each with a remedy. The "
                "exit status is 0 if nothing does, else 1.",
            )
        )
        return
    config = tyro.cli(
        ServerConfig,
        args=arguments,
        prog="python -m policy_server",
        description="Serve a policy over ZeroMQ. Prints one line `ready ADDRESS …` when answers "
        "can be in time; Ctrl-C or SIGTERM finishes what is in service and exits. "
        "SIGHUP swaps to the checkpoint that lies at its path now. "
        "`python -m policy_server keygen --help` tells how to let other machines in, "
        "`python -m policy_server doctor` what here threatens deadlines.",
    )
    serve(config)


if __name__ == "__main__":
    main()
