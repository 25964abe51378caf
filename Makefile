PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all system board lint types audit platforms bench clean

.venv/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("edgepress needs Python 3.11 or newer: make PYTHON=python3.12 …") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: .venv/.ready
	$(BIN)/compress benchmarks/zoo/fmnist_cnn/model.onnx --data benchmarks/zoo/fmnist_cnn/calib.npz \
	  --test benchmarks/zoo/fmnist_cnn/test.npz --budget 2 --out demo-out

test: lint types system board .axe/.ready .venv/.ready
	$(BIN)/python -m pytest -n 2 -rs

# And what the tests take a part of, all of it: test models of the onnx package, faults, damaged files, releases of Python.
test-all: test platforms
	$(BIN)/python benchmarks/anymodel.py --out benchmarks/results/anymodel.json
	$(BIN)/python benchmarks/faults.py --out benchmarks/results/faults.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutation.py --out benchmarks/results/mutation.json

# What some tests talk to: installed where that is possible, else those tests are skipped and named. RUNLEVEL=1: the server
# is not started, tests start their own.
SYSTEM := openssh-client openssh-server adb qemu-user gcc libc6-dev chromium chromium-driver
system:
	@PATH="$$PATH:/usr/sbin"; missing=; for name in ssh sshd adb qemu-aarch64 cc chromedriver; do \
	  command -v $$name >/dev/null || missing="$$missing $$name"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SYSTEM) >/dev/null; \
	then exit 0; fi; \
	echo "not installed:$$missing; some tests are skipped. With root rights: apt-get install $(SYSTEM)" >&2

# A Python as boards have it, with tflite_runtime and an old numpy: where there is one, and the package index has them.
board: .venv/.ready
	@[ -x .venv-board/bin/python ] || PYTHONPATH=benchmarks $(BIN)/python tests/boardpython.py .venv-board || true

# What looks at pages for barriers, in a browser; a script of its own, so no package of node's is installed.
.axe/.ready:
	@mkdir -p .axe
	@if command -v npm >/dev/null && cd .axe && npm pack --silent axe-core@4.14.1 >/dev/null; then \
	  tar -xzf axe-core-*.tgz package/axe.min.js package/LICENSE && rm axe-core-*.tgz && touch .ready; \
	else \
	  echo "skipped: the search for barriers in tests/compressor/test_browser.py, for want of npm or its registry" >&2; \
	fi

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# On an installed copy: the packages lie in folders of other names than they are imported by.
types: .venv/.ready
	rm -rf .types build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .types .
	rm -rf build
	MYPYPATH=.types $(BIN)/mypy -p edgepress.compressor -p edgepress.runtime -p edgepress.devices
	MYPYPATH=.types $(BIN)/mypy benchmarks/acceptance.py benchmarks/readme_table.py benchmarks/curves.py \
	  benchmarks/workers.py benchmarks/gate.py benchmarks/peers.py benchmarks/peer_judge.py benchmarks/tflite.py \
	  benchmarks/tflite_judge.py benchmarks/cycles.py benchmarks/sparse_engine.py benchmarks/certify.py \
	  benchmarks/mutation.py benchmarks/audit.py benchmarks/platforms.py

# Known vulnerabilities of what is installed, where advisories can be reached.
audit: .venv/.ready
	$(BIN)/python benchmarks/audit.py

# Releases of Python and of the dependencies; the package installed and run from outside. Makes environments, and removes them.
platforms: .venv/.ready
	$(BIN)/python benchmarks/platforms.py --out benchmarks/results/platforms.json

bench: .venv/.ready
	$(BIN)/python benchmarks/acceptance.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/tflite.py
	$(BIN)/python benchmarks/readme_table.py
	$(BIN)/python benchmarks/curves.py

clean:
	rm -rf .venv .venv-peers .venv-board .venv-audit .axe .types build dist *.egg-info demo-out
