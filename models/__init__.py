"""Diffusion policies: schedules, samplers, guidance, networks, training, checkpoints, export."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - pip installs the client, and so this, on 3.10
    raise ImportError("models, policy_server and benchmarks need Python 3.11 or newer")
