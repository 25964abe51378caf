PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test system lint types bench clean

.venv/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("edgepress needs Python 3.11 or newer: make PYTHON=python3.12 …") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: .venv/.ready
	$(BIN)/compress benchmarks/zoo/fmnist_cnn/model.onnx --data benchmarks/zoo/fmnist_cnn/calib.npz \
	  --test benchmarks/zoo/fmnist_cnn/test.npz --budget 2 --out demo-out

test: lint types system .venv/.ready
	$(BIN)/python -m pytest -n 2 -rs

# What some tests talk to: installed where that is possible, else those tests are skipped and named. RUNLEVEL=1: the server
# is not started, tests start their own.
system:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	    && ! { [ -x /usr/sbin/sshd ] && command -v ssh && command -v adb; } >/dev/null; then \
	  apt-get update -qq; \
	  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    openssh-client openssh-server adb >/dev/null || true; \
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
	  benchmarks/workers.py benchmarks/peers.py benchmarks/peer_judge.py benchmarks/tflite.py \
	  benchmarks/tflite_judge.py

bench: .venv/.ready
	$(BIN)/python benchmarks/acceptance.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/tflite.py
	$(BIN)/python benchmarks/readme_table.py
	$(BIN)/python benchmarks/curves.py

clean:
	rm -rf .venv .venv-peers .venv-board .types build dist *.egg-info demo-out
