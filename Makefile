# Every target sets up what it needs in $(VENV) first; a finished set-up is not repeated.
#   make demo               train on a real data set on every backend this machine has
#   make test               the test suite
#   make kernels            compile every CUDA kernel, without a GPU
#   make soak               kills, damaged files, failing disks, threads and forks, many times each
#   make test-gpu-command   the command behind make gpu, without a GPU
#   make parity             the part of it that compares with scikit-learn
#   make lint               ruff and mypy
#   make bench              a benchmark of a few minutes: JSON, a table, two charts
#   make bench-peers        the same against torch, jax and scikit-learn
#   make bench-sklearn      the estimators against scikit-learn's
#   make bench-many         many networks at once, against jax and scikit-learn
#   make bench-streams      training on files larger than memory
#   make bench-scaling      steps of one and two processes over MPI, and what follows for more
#   make docs               the documentation as pages: site/
#   make gpu                verify and measure on an NVIDIA GPU: at most eight minutes (see bench/README.md)
#   make demo GPU=cuda13    with CuPy for CUDA 13 (cuda12 for CUDA 12); also for test and bench
PYTHON ?= python3
VENV ?= .venv
GPU ?=
SETUP ?= yes
OPTIONS ?=
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
comma := ,
with_gpu = $(1)$(if $(GPU),$(comma)$(GPU))

.PHONY: demo test test-fast parity kernels soak test-gpu-command lint format bench bench-full bench-peers bench-sklearn bench-many bench-streams bench-scaling docs gpu clean

# A stamp a set of extras: changing pyproject.toml installs again.
$(VENV)/.set-up-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[$*]"
	touch $@

demo: $(VENV)/.set-up-$(call with_gpu,plot)
	mkdir -p demo
	$(BIN)/fusedmlp train breast-cancer --all-backends \
		--out demo/model.safetensors --plot demo/loss.png --metrics demo/metrics.jsonl

# In several processes, a file of tests at a time: make test JOBS=4
test: $(VENV)/.set-up-$(call with_gpu,test)
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder

test-fast: $(VENV)/.set-up-$(call with_gpu,test)
	$(BIN)/python -m pytest -m "not slow and not every_kernel and not gpu_command"

# The estimators against scikit-learn's: its own tests, its checks, the same numbers.
parity: $(VENV)/.set-up-test
	$(BIN)/python -m pytest tests/estimators

# Their times against scikit-learn's: some fifteen minutes.
bench-sklearn: $(VENV)/.set-up-peers
	$(BIN)/python -m bench.estimators --out bench/out/estimators

# fit_many against trainings in turn, jax.vmap and scikit-learn in two processes: some ten minutes.
bench-many: $(VENV)/.set-up-peers
	$(BIN)/python -m bench.many --out bench/out/many

# Training on files against training in memory.
bench-streams: $(VENV)/.set-up-test
	$(BIN)/python -m bench.streams --out bench/out/streams

# Steps of one and two processes, and the model of docs/scaling.md: five minutes on a quiet machine.
bench-scaling: $(VENV)/.set-up-test
	$(BIN)/python -m bench.scaling --out bench/out/scaling

# Links are checked; the reference is made of the docstrings.
docs: $(VENV)/.set-up-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Every kernel of the large CUDA files through NVIDIA's compiler, without a GPU: after a change under kernels/.
kernels: $(VENV)/.set-up-test
	$(BIN)/python -m pytest tests/cuda -m every_kernel

# Kills, damaged files, failing disks, threads and forks, many times; SOAK="--soak-kills=1000" for other counts.
soak: $(VENV)/.set-up-test
	$(BIN)/python -m pytest tests/soak --soak $(SOAK)

# The command behind make gpu, with tests and processes that hang: after a change under bench/peers/.
test-gpu-command: $(VENV)/.set-up-test,peers
	$(BIN)/python -m pytest tests/test_bench_gpu.py -m gpu_command

lint: $(VENV)/.set-up-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.set-up-lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench bench-full: $(VENV)/.set-up-$(call with_gpu,test)
	$(BIN)/python -m pytest bench $(if $(filter bench,$@),--quick) -q --benchmark-quiet --benchmark-json=bench/out/$@.json
	$(BIN)/python -m bench.report bench/out/$@.json --markdown bench/out/$@.md --charts bench/out

# The fused engine of numba-cpu against torch, jax and scikit-learn: some 20 minutes.
bench-peers: $(VENV)/.set-up-peers
	$(BIN)/python -m bench.peers --out bench/out/peers

# With SETUP=no on what $(PYTHON) has, installing nothing: make gpu PYTHON=python3 SETUP=no OPTIONS="--quick"
gpu: $(if $(filter no,$(SETUP)),,$(VENV)/.set-up-test$(comma)peers$(comma)$(or $(GPU),cuda13))
	PYTHONPATH=src$(if $(PYTHONPATH),:$(PYTHONPATH)) $(if $(filter no,$(SETUP)),$(PYTHON),$(BIN)/python) -m bench.peers.gpu $(OPTIONS)

clean:
	find src -name '*.nb[ci]' -delete
	rm -rf $(VENV) site demo bench/out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
