#!/usr/bin/env bash
# `pip install .` without extras gives a client that imports on every Python found, and no torch.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tested=
for version in 3.10 3.11 3.12 3.13; do
    python=
    # on the path, or where pyenv keeps them (its shims exist also for versions that are not active)
    for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
        if "$candidate" -c "" 2>/dev/null; then python=$candidate; break; fi
    done
    if [ -z "$python" ]; then echo "python $version: not found, skipped"; continue; fi
    "$python" -m venv "$work/$version"
    "$work/$version/bin/pip" --disable-pip-version-check --quiet install .
    (cd "$work" && "$work/$version/bin/python" - <<'PY'
import importlib.util, pkgutil, sys
import client
names = [
    module.name
    for module in pkgutil.walk_packages(client.__path__, "client.")
    if not module.name.startswith("client.sims") and not module.name.endswith("__main__")
]
for name in names:
    importlib.import_module(name)
heavy = {"torch", "onnxruntime", "mujoco", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
for name in ("torch", "onnxruntime", "mujoco", "matplotlib"):
    assert importlib.util.find_spec(name) is None, f"{name} was installed with the client"
print(f"python {sys.version_info.major}.{sys.version_info.minor}: {len(names)} modules of client")
PY
    )
    tested="$tested $version"
done
rm -rf build
case "$tested" in
    *3.10*) ;;
    *) echo "python 3.10, the oldest that is promised, was not tested"; exit 1 ;;
esac
