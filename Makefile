# Two commands are enough: `make demo` and `make test`. Each does all the set-up that it needs.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

BIN := .venv/bin
PYTHON := $(BIN)/python
CODE := operator trainer-image e2e tests examples scripts bench
CRD_FOLDERS := crds charts/lorikeet/files/crds
export PATH := $(CURDIR)/.cluster/bin:$(CURDIR)/.venv/bin:$(PATH)
# Whoever forbids byte code has every process that a test starts compile torch and all around it anew: ten seconds each.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test check lint unit integration trainer-test e2e generate lock ready images cluster cluster-down \
        deploy faults crashes bench-operator bench-router bench-router-shares bench-serving \
        bench-checkpoints bench-training bench-data host tools clean

help: ## show what there is
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

demo: ready ## all set-up, then two jobs, and their adapters served side by side
	$(PYTHON) -m e2e.demo

test: ## all set-up, then every test, on a cluster that is brought up for it and stays up
	$(MAKE) --no-print-directory tools check trainer-test ready integration e2e
	@echo "every test passed"

check: host lint unit ## lint, types, import contracts, drift of generated files, unit and golden tests

lint: host
	$(BIN)/ruff format --check --quiet $(CODE)
	$(BIN)/ruff check --quiet $(CODE)
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports
	$(PYTHON) -m lorikeet_api.crdgen --check $(CRD_FOLDERS)
	$(PYTHON) scripts/chart_readme.py --check

unit: tools ## unit and golden tests
	LORIKEET_REQUIRE_CHROMIUM=1 $(BIN)/pytest tests/unit -q -n 2

integration: cluster ## tests against the real API server
	$(BIN)/pytest tests/integration -q

trainer-test: tools ## trains tiny models on the CPU, with a real S3 server
	LORIKEET_REQUIRE_CHROMIUM=1 $(BIN)/pytest tests/trainer -q -n 2 --dist loadfile --durations=15

SCENARIOS ?= e2e/scenarios
e2e: ready ## scenarios on the whole cluster (some of them: SCENARIOS=e2e/scenarios/test_bad_input.py)
	$(BIN)/pytest $(SCENARIOS) -q -n 2 --timeout 900 --durations=40

generate: tools ## write CRDs, golden files and the chart's README anew
	$(PYTHON) -m lorikeet_api.crdgen $(CRD_FOLDERS)
	$(PYTHON) scripts/chart_readme.py
	UPDATE_GOLDEN=1 $(BIN)/pytest tests/unit -q -n 2 -k golden
	git status --short

lock: host ## write the hash-pinned locks anew
	scripts/lock.sh

ready: images ## the cluster with the images of this checkout in it
ifneq ($(CLUSTER),existing)
cluster: tools ## bring up a real single-node Kubernetes with an S3 server (state in .cluster/)
	$(PYTHON) -m e2e.cluster up

images: cluster ## build the images and push them into the cluster's registry
	$(PYTHON) -m e2e.cluster images
else
cluster images: host
	@:
endif

faults: tools ## apply each one-line fault of tests/faults.yaml to a copy, and require a red test
	$(PYTHON) scripts/faults.py

crashes: ready ## kill the operator for real before and after every write of a job's life (a quarter of an hour)
	$(PYTHON) -m e2e.crashes

bench-operator: tools ## measure the operator against an API server of its own (seconds to minutes: BENCH="--jobs 5000")
	$(PYTHON) -m bench.operator_load $(BENCH)

bench-router: tools ## measure the router against a bare Envoy, and LiteLLM with BENCH=--peer (minutes; needs Debian's wrk)
	$(PYTHON) -m bench.router $(BENCH)

bench-router-shares: tools ## measure how the router shares requests, and whom a change of weights moves (a minute)
	$(PYTHON) -m bench.router_shares $(BENCH)

bench-serving: ready ## measure how soon edits and new revisions are in the answers of two vLLMs (a quarter of an hour)
	$(PYTHON) -m bench.serving_changes $(BENCH)

bench-checkpoints: tools ## measure what checkpoints cost a run, with a slow store (minutes)
	$(PYTHON) -m bench.checkpoints $(BENCH)

bench-training: tools ## measure training beside trl's own script (a quarter of an hour; on a GPU BENCH=--gpu)
	$(PYTHON) -m bench.training $(BENCH)

bench-data: tools ## measure what becomes of a million rows beside datasets.map (half an hour; fewer: BENCH="--rows 100000")
	$(PYTHON) -m bench.data $(BENCH)

cluster-down: host ## end the cluster; its image store stays
	$(PYTHON) -m e2e.cluster down

clean: host ## end the cluster and remove all of .cluster/
	$(PYTHON) -m e2e.cluster clean

deploy: ready ## install or upgrade Lorikeet by its Helm chart (CLUSTER=existing: in KUBE_CONTEXT)
	$(PYTHON) -m e2e.deploy

host:
	@scripts/bootstrap.sh host

tools:
	@scripts/bootstrap.sh cluster
	@$(PYTHON) -m e2e.cluster build
