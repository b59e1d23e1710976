# make demo   the whole product on this machine's CPU
# make demo-real  the same with a real language model, SmolLM2-135M: examples/smollm2 (about 5 min, 12 GB of memory)
# make base   train the shipped base configs/bases/tiny_cpu again
# make test   lint, then all tests (about 17 min)
# make test-fast  the tests that start no jobs and no MindSpore, while you work
# make docs-check  every command that README, docs/ and examples/ show, held to what they say it prints (about 8 min)
# make semi-auto  models split over two and four CPU ranks, for real (about 6 min; skipped where its emulator is missing)
# make test-web  the board and the chat page in a browser (about a minute; needs Debian's package chromium)
# make test-lm-eval  EleutherAI's lm-eval against `launcher serve`, in an environment of its own (0.9 GB)
# make lint   ruff, mypy, and that the shipped schema and docs/configuration.md say what the code does
# make faults the table of faults: what breaks, what is said, what is left (about an hour)
# make soak   kills ranks of real trainings at random moments, and compares the weights (COUNT=40 MINUTES=60)
# make bench-NAME  one of the benchmarks in tests/benchmarks, with ARGS='--option value' (docs/benchmarks.md); the peers of
#   bench-start, bench-asking and bench-data are installed into build/peers on first use
# make verdict-score  what the verdict makes of the corpus of failures in tests/verdicts (seconds)
# make slow-ranks  how often a slow rank is named, and a healthy one is not (at most 10 min)
# make site   the documentation as web pages with search, English and Chinese, in build/site
# Each makes .venv when there is none. PYTHON names the interpreter to make it with (3.10 or 3.11).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo demo-real base test test-fast test-web test-lm-eval docs-check semi-auto faults soak verdict-score \
	slow-ranks site lint clean

demo: $(VENV)/.installed
	$(BIN)/launcher demo

# One rank with two threads: the order of every sum is fixed, and so is every bit of the base on one machine.
BASE := configs/bases/tiny_cpu
base: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash $(BASE)/make.sh build/base

# More workers than cores, as many tests wait for processes. --dist loadgroup: what tests share is made once (conftest.py).
WORKERS ?= 3
test: lint
	@mkdir -p build
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup -m "not semi_auto and not docs and not web" \
		--cov --cov-report= --cov-report=json:build/coverage.json
	$(BIN)/python tests/coverage_floors.py build/coverage.json

test-fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses 2 -m "not slow"

test-web: $(VENV)/.installed-test
	@command -v chromium > /dev/null || { echo "There is no chromium here: apt-get install chromium" >&2; exit 1; }
	$(PIP) --editable '.[web]'
	$(BIN)/python -m pytest -m web tests/web

test-lm-eval: $(VENV)/.installed-test
	@mkdir -p build
	@[ -d build/lm-eval ] || $(PYTHON) -m venv build/lm-eval
	build/lm-eval/bin/python -m pip install --quiet --disable-pip-version-check 'lm-eval[api]' transformers
	LAUNCHER_LM_EVAL=$(CURDIR)/build/lm-eval/bin/python $(BIN)/python -m pytest tests/inference/test_lm_eval.py

# MindSpore's CPU build does not split models; a patched copy of it, which lies beside the project, does.
semi-auto: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/semi_auto

# The cheap ones of these run in `make test`.
docs-check: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/docs

demo-real: $(VENV)/.installed
	$(PIP) --editable '.[examples]'
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/smollm2/run.sh build/smollm2

# Every fault with every engine, on 2 and 4 ranks and on two hosts, real MindSpore on CPU (about an hour).
faults: $(VENV)/.installed-test
	@mkdir -p build
	$(BIN)/python tests/integration/faults/table.py --out build/faults.md
	$(BIN)/python tests/integration/faults/hosts.py --out build/faults_hosts.md
	LAUNCHER_FAULTS=all $(BIN)/python -m pytest tests/schedulers/test_slurm.py tests/schedulers/test_ssh.py \
		tests/integration/test_slurm_training.py tests/integration/test_mpirun_hosts.py

# Goes on where build/soak.jsonl ends.
COUNT ?= 40
MINUTES ?= 60
soak: $(VENV)/.installed-test
	@mkdir -p build
	$(BIN)/python tests/integration/soak.py --count $(COUNT) --minutes $(MINUTES) --out build/soak.jsonl

bench-%: $(VENV)/.installed-test
	$(BIN)/python tests/benchmarks/bench_$(subst -,_,$*).py $(ARGS)

verdict-score: $(VENV)/.installed-test
	$(BIN)/python tests/verdicts/score.py

slow-ranks: $(VENV)/.installed-test
	$(BIN)/python tests/benchmarks/bench_slow_ranks.py

# The pages keep their places, so that links between them hold.
SITE := build/site-pages
site: $(VENV)/.installed
	$(PIP) --editable '.[site]'
	@rm -rf $(SITE) && mkdir -p $(SITE)
	@cp -r README.md README.zh.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md LICENSE docs examples rank_tables $(SITE)
	@find $(SITE) -name '*.md' -exec sed -i -E 's/^```([a-z]+) .*/```\1/' {} + # words for the tests of pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site
	@echo "build/site/index.html; to look at it: $(BIN)/mkdocs serve"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/launcher config schema --check configs/run.schema.json
	$(BIN)/launcher config reference --check docs/configuration.md

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(VENV)/bin/python
	@echo "Installing MindSpore and MindFormers into $(VENV): 3.4 GB, 2 to 5 minutes the first time."
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.installed
	$(PIP) --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) demo
