"""The client's command line: is a server there, what does it serve, what would it do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy as np
import numpy.typing as npt

from client.errors import InvalidRequestError, PolicyError
from client.policy_client import PolicyClient

_EPILOG = """\
examples:
  python -m client ping tcp://127.0.0.1:5555
  python -m client metadata tcp://127.0.0.1:5555
  python -m client act tcp://127.0.0.1:5555 --instruction "open the drawer" \\
      --observation observation.npz

ADDRESS is where the server listens, tcp://HOST:PORT. Answers are JSON on stdout; an error is one
line on stderr and exit status 1.
"""

_OBSERVATION_HELP = """\
file with one array for each name that `metadata` lists under spec.observation, with its shape (the
leading axis is the history, oldest first) and dtype; write it with
numpy.savez("observation.npz", state=array)
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m client",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("address", metavar="ADDRESS", help="e.g. tcp://127.0.0.1:5555")
    shared.add_argument(
        "--timeout-ms", type=float, default=1000.0, help="give up after this (default 1000)"
    )
    shared.add_argument(
        "--keys", type=Path, metavar="FOLDER", help="for a server that was started with --keys"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ping", parents=[shared], help="time to the server and back")
    commands.add_parser("metadata", parents=[shared], help="what the server serves")
    act = commands.add_parser("act", parents=[shared], help="ask once for an action_chunk")
    act.add_argument("--instruction", required=True, help='plain words, e.g. "open the drawer"')
    act.add_argument(
        "--observation", required=True, type=Path, metavar="FILE.npz", help=_OBSERVATION_HELP
    )
    act.add_argument(
        "--budget-ms", type=float, default=80.0, help="answer within this (default 80)"
    )
    act.add_argument("--num-steps", type=int, help="exactly so many denoising steps")
    act.add_argument(
        "--guidance-scale", type=float, help="w of Ho & Salimans: 0 is plainly conditional"
    )
    act.add_argument("--eta", type=float, help="0 deterministic .. 1 ancestral DDPM")
    act.add_argument("--seed", type=int, help="same seed, same answer")
    act.add_argument(
        "--best-effort", action="store_true", help="answer even if the budget cannot be met"
    )
    return parser


def _load(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, AttributeError, TypeError, BadZipFile) as error:
        msg = f"--observation: expected an .npz file of arrays, got {path} ({error})"
        raise InvalidRequestError(msg) from error


def _answer(args: argparse.Namespace) -> object:
    timeout_s = args.timeout_ms / 1000
    observation = _load(args.observation) if args.command == "act" else {}
    with PolicyClient(args.address, keys=args.keys) as policy:
        if args.command == "ping":
            return {"round_trip_s": policy.ping(timeout_s=timeout_s)}
        metadata = policy.metadata(timeout_s=timeout_s)
        if args.command == "metadata":
            return metadata
        return policy.act(
            observation,
            args.instruction,
            budget_s=args.budget_ms / 1000,
            num_steps=args.num_steps,
            guidance_scale=args.guidance_scale,
            eta=args.eta,
            seed=args.seed,
            best_effort=args.best_effort,
            timeout_s=timeout_s,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    args = _parser().parse_args(argv)
    try:
        answer = _answer(args)
    except PolicyError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    as_json = msgspec.json.encode(answer, enc_hook=np.ndarray.tolist)
    sys.stdout.write(msgspec.json.format(as_json, indent=2).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
