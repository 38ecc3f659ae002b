# make demo   the main job end to end: compress, push, profile, select, deploy, on this machine
# make test   every test, the agent's on the oldest other Python >= 3.10, too, most on the newest; make test-arm64: the agent on 64-bit Arm, under qemu
# make lint   ruff and mypy          make bench   tables of docs/benchmarks.md, minutes each
#
# Each does its own set-up and re-uses it. PYTHON=… chooses the interpreter (3.11 or newer);
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes torch's CPU build where the default one brings CUDA.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
PIP := -m pip --disable-pip-version-check install --quiet
BIN := .venv/bin
export OMP_NUM_THREADS := 1

.PHONY: demo test test-arm64 lint bench bench-compression bench-container bench-profiler bench-agent bench-serve deb setup data wheel clean

demo: setup .venv-tflite/ready data
	$(BIN)/edgepress demo --out runs/demo --tflite-python .venv-tflite/bin/python

test: setup .venv-tflite/ready data
	$(BIN)/python tests/everywhere.py

# The agent in a 64-bit Arm system under qemu, which is fetched from this system's own package sources into build/arm64
# the first time (300 MB); skipped in words where that cannot be had.
test-arm64: setup
	$(BIN)/python tests/arm64/userland.py
	EDGEPRESS_ARM64=1 $(BIN)/python -m pytest tests/arm64

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/transfer.py
	$(BIN)/python benchmarks/transfer.py --mb 50

# Hours the first time, most of it VGG-16; what was done is kept under runs/bench.
bench-compression: setup data
	$(BIN)/python benchmarks/compression/deep.py --write
	$(BIN)/python benchmarks/compression/vgg.py --write
	$(BIN)/python benchmarks/compression/small.py --write
	$(BIN)/python benchmarks/compression/low_rank.py --write
	$(BIN)/python benchmarks/compression/everything.py --write

# What the container makes of files, and how fast it expands them; FILES="a.onnx b.tflite" takes your own.
bench-container: setup
	$(BIN)/python benchmarks/container.py $(or $(FILES),--write)

# What an idle agent costs a board, over TLS: three minutes.
bench-agent: setup
	$(BIN)/python benchmarks/agent.py --write

# dist/edgepress-agent_*.deb for Debian bookworm on amd64 and arm64; .venv must be of Python 3.11, as bookworm is.
deb: setup
	$(BIN)/python deploy/deb/build.py

# dist/edgepress-*.whl, for hosts and boards of your own.
wheel: setup
	$(BIN)/python -m hatchling build -t wheel

# Whether the agent's latency is that of a bare loop, and its energy that of a power that is known: a few minutes.
bench-profiler: setup
	$(BIN)/python benchmarks/profiler.py --write

# What a request to the active model costs above the bare runtime: two minutes.
bench-serve: setup
	$(BIN)/python benchmarks/serve.py --write

setup: .venv/ready

# torch goes first and alone, so that no looser requirement picks another build of it.
.venv/ready: pyproject.toml
	@echo "Setting up .venv with $(PYTHON): a few minutes and about 3 GB the first time"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgepress: the host needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) "$$(sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python $(PIP) --editable '.[dev]'
	@touch $@

# tflite-runtime needs numpy < 2, so it has an environment of its own, and a Python below 3.12.
.venv-tflite/ready: pyproject.toml
	$(PYTHON) -m venv .venv-tflite
	.venv-tflite/bin/python $(PIP) --editable '.[tflite-runtime,test]'
	@touch $@

# The data set: where it already is, else as a system package where we may install one, else without root.
data: setup
	@$(BIN)/python -m edgepress_models.fashion_mnist where 2>/dev/null \
	|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq dataset-fashion-mnist >/dev/null \
	     && $(BIN)/python -m edgepress_models.fashion_mnist where; } \
	|| $(BIN)/python -m edgepress_models.fashion_mnist fetch

clean:
	rm -rf .venv .venv-* runs build dist
