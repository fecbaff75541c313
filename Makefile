# Two commands do everything on a fresh machine: `make audit` and `make test`.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := audit
.PHONY: audit test check bench docs clean

# The demo: a small CNN on real scans of digits. Prints where the report is; exits 1 because there is something to find.
audit: $(STAMP)
	@$(BIN)/buckler audit --demo digits; code=$$?; if [ $$code -gt 1 ]; then exit $$code; fi

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/ruff format --check src tests benchmarks examples docs
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest tests/test_shape_of_the_code.py

# Measured claims, side by side with other libraries: long, and it installs them.
bench: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[bench]'
	$(BIN)/python benchmarks/evasion.py

docs: $(STAMP)
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed anew only when pyproject.toml changes. pip's own settings (index, proxy, cache) are honoured.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): about 1 GB the first time, a minute or two"
	@{ $(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'; echo "pip ended with $$?"; } 2>&1 \
	  | tee $(VENV)/install.log \
	  | awk '/^ *(Collecting|Downloading|Building|Preparing|Installing)/ { printf "\r\033[K%.76s", $$0; fflush() } \
	         /^(ERROR|Successfully)/ { printf "\r\033[K%.300s\n", $$0; fflush() }'
	@grep -q '^pip ended with 0$$' $(VENV)/install.log || { tail -n 20 $(VENV)/install.log; exit 1; }
	@touch $@
