# Two commands on a fresh machine: `make suites` and `make test`. Both build what they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ENGINE ?=
ARGS   ?=

.PHONY: suites test lint bench bench-client bench-judge clean

# Everything in the environment comes from pyproject.toml; uv is its first resident.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable . --group dev
	touch $@

suites: $(READY)
	$(BIN)/pytest suites/ $(if $(ENGINE),--engine $(ENGINE)) $(ARGS)

# Four workers on two cores too: tests wait for slow servers half of their time. Each worker would
# otherwise compile all test modules anew.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(READY)
	$(BIN)/pytest tests/ -n 4 -p no:benchmark $(ARGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/pytest benchmarks/ --benchmark-only $(ARGS)

bench-client: $(READY)
	$(BIN)/python -m benchmarks.client $(ARGS)

bench-judge: $(READY)
	$(BIN)/python -m benchmarks.judge $(ARGS)

clean:
	rm -rf $(VENV) .moeperf .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
