# Two commands are all one needs: `make run` and `make test`. The others: see `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export PATH := $(PATH):$(HOME)/.cargo/bin
CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
PORT ?= 8000

# Which build: release (what `make run` and `make install` use) or dev (quick to build).
PROFILE ?= release
TARGET := $(or $(CARGO_TARGET_DIR),target)
PROFILE_DIR := $(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
OUT := $(TARGET)/$(PROFILE_DIR)
# The worker's extension needs no Python to build: it uses the stable ABI and links to no libpython.
WORKER_ENV := PYO3_BUILD_EXTENSION_MODULE=1 PYO3_NO_PYTHON=1
# The module for nginx is built where nginx's sources are: those of Debian's nginx-dev, or a tree that is named.
NGINX := $(if $(or $(NGINX_SOURCE_DIR),$(wildcard /usr/share/nginx/src/configure)),yes)
NO_NGINX := nginx's headers were not found: the module for nginx is left out (nginx-dev, or NGINX_SOURCE_DIR and NGINX_BUILD_DIR)
NGINX_SO := libngx_http_wsgi_rs_module.so
PYTEST := build/venv/bin/python -m pytest
PYTEST_ARGS ?=

.PHONY: help run build dev install images test test-all test-rust test-python test-docker lint docs bench clean

help: ## Show this
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

run: ## Build, then serve examples/hello/app.wsgi on http://localhost:8000 until Ctrl-C
	@scripts/setup.sh run
	$(MAKE) build
	exec $(OUT)/mod-wsgi-rs express examples/hello/app.wsgi --port $(PORT)

build: ## Build module, binary and worker files into target/release
	@scripts/setup.sh build
	$(CARGO) build --locked --profile $(PROFILE) -p mod-wsgi-rs -p mod-wsgi-express
	if [ -n "$(NGINX)" ]; then
	    $(CARGO) build --locked --profile $(PROFILE) -p ngx-http-wsgi-rs
	else
	    echo "$(NO_NGINX)"
	fi
	$(WORKER_ENV) $(CARGO) build --locked --profile $(PROFILE) -p mod-wsgi-worker
	scripts/worker-files.sh $(OUT)/libmod_wsgi_worker.so $(OUT)/worker

dev: ## The same without optimisation, into target/debug
	@$(MAKE) build PROFILE=dev

install: ## Install below PREFIX (/usr/local); DESTDIR for packages
	@test -f $(OUT)/worker/bootstrap.py || { echo "run 'make build' first" >&2; exit 1; }
	lib=$(DESTDIR)$(PREFIX)/lib/mod-wsgi-rs
	install -d "$$lib" "$(DESTDIR)$(PREFIX)/bin"
	install -m 755 $(OUT)/mod-wsgi-rs "$$lib/mod-wsgi-rs"
	install -m 755 $(OUT)/libmod_wsgi_rs.so "$$lib/mod_wsgi_rs.so"
	scripts/worker-files.sh $(OUT)/libmod_wsgi_worker.so "$$lib/worker" "$(PREFIX)/lib/mod-wsgi-rs/worker"
	ln -sfn ../lib/mod-wsgi-rs/mod-wsgi-rs "$(DESTDIR)$(PREFIX)/bin/mod-wsgi-rs"
	echo "Installed. Apache loads the module with:"
	echo "    LoadModule wsgi_module $(PREFIX)/lib/mod-wsgi-rs/mod_wsgi_rs.so"
	if [ -f $(OUT)/$(NGINX_SO) ]; then
	    install -m 755 $(OUT)/$(NGINX_SO) "$$lib/ngx_http_wsgi_rs_module.so"
	    echo "nginx loads the module with:"
	    echo "    load_module $(PREFIX)/lib/mod-wsgi-rs/ngx_http_wsgi_rs_module.so;"
	    # Another nginx than the one it was built for refuses it; better heard now than at its next start.
	    "$$lib/mod-wsgi-rs" check-nginx || true
	else
	    echo "$(NO_NGINX)"
	fi

images: ## Build the Docker images of docker/
	@docker/images.sh

test: ## Lint and run all tests
	@scripts/setup.sh test
	# The release is built beside what needs only the dev profile: much of either is work for one core.
	mkdir -p build
	$(MAKE) build >build/release.log 2>&1 & release=$$!
	trap 'kill $$release 2>/dev/null || true' EXIT
	$(MAKE) lint
	$(MAKE) test-rust
	wait $$release || { cat build/release.log >&2; exit 1; }
	trap - EXIT
	cat build/release.log
	$(MAKE) test-python

test-all: ## make test, then the long suites
	@$(MAKE) test
	$(MAKE) test-python PYTEST_ARGS="-m long"

test-rust: ## Rust tests alone
	@$(CARGO) test --locked

test-python: ## End-to-end tests alone, against the build in target/
	@scripts/venv.sh
	MWR_PROFILE=$(PROFILE_DIR) scripts/tests.sh $(PYTEST_ARGS)

test-docker: ## All tests of the images, with a Docker engine
	@scripts/setup.sh test
	scripts/venv.sh
	MWR_PROFILE=$(PROFILE_DIR) $(PYTEST) -q $(PYTEST_ARGS) -m "long or not long" --override-ini=timeout=1200 --override-ini=faulthandler_timeout=1150 tests/docker

lint: ## Formatting, clippy, ruff, licences and sources of dependencies
	@scripts/venv.sh
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --exclude mod-wsgi-worker $(if $(NGINX),,--exclude ngx-http-wsgi-rs) --all-targets -- -D warnings
	$(WORKER_ENV) $(CARGO) clippy --locked -p mod-wsgi-worker -- -D warnings
	build/venv/bin/ruff check .
	build/venv/bin/ruff format --check .
	$(CARGO) metadata --locked --format-version 1 | python3 scripts/check_licenses.py

docs: ## Write the generated pages of docs/
	@MWR_WRITE_DOCS=1 $(CARGO) test --locked -q -p mod-wsgi-core -p mod-wsgi-express document

bench: ## Compare with other servers; writes docs/benchmarks.md
	@scripts/setup.sh bench
	$(MAKE) build
	scripts/bench.sh $(OUT)

clean: ## Remove everything that was built
	@$(CARGO) clean
	rm -rf build
