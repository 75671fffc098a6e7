# Each target is enough on a fresh clone: it makes .venv (or takes PYTHON=... with the packages already there).
PYTHON ?= .venv/bin/python
export HF_HUB_OFFLINE ?= 1
export TRL_EXPERIMENTAL_SILENCE ?= 1

ifeq ($(PYTHON),.venv/bin/python)
READY = .venv/ready
endif

.PHONY: quickstart test slow check bench

quickstart: $(READY)  ## pretrain, fine-tune, reward model, DPO, PPO, evaluation and report, in minutes on a CPU
	$(PYTHON) -m alignkit run recipes/quickstart.yaml

test: $(READY)  ## all tests but the longer ones, in twelve to twenty minutes on two cores
	$(PYTHON) -m pytest -m "not slow"

slow: $(READY)  ## the longer tests
	$(PYTHON) -m pytest -m slow

check: $(READY)  ## format, lint, types, tests
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pyright
	$(MAKE) test

bench: $(READY)  ## training speed and memory against TRL, side by side
	$(PYTHON) benchmarks/against_trl.py

.venv/ready: pyproject.toml constraints.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install -q -c constraints.txt -e ".[dev,eval,data]"
	touch .venv/ready
