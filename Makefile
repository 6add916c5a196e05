# Two commands on a fresh machine: `make demo` and `make test`.
# OPENVOCAB_PYTHON=/path/to/python uses that environment as it is and installs nothing.

ifdef OPENVOCAB_PYTHON
PY := PYTHONPATH=src $(OPENVOCAB_PYTHON)
PEERS := $(PY)
setup = @true
else
PY := .venv/bin/python
PEERS := .venv-peers/bin/python
setup = @scripts/setup.sh $(1) $(2)
endif

.PHONY: demo test parity learn browser slow bench house gallery speedrun format published gpu

demo:  ## train a small CLIP on generated scenes and write report.html (SMOKE=1: under a minute)
	$(call setup,.venv,fast)
	$(PY) -m openvocab.cli demo $(if $(SMOKE),--smoke)

test:  ## unit, system and house tests
	$(call setup,.venv,test)
	$(PY) -m pytest -n 2

parity:  ## the same numbers as clip-anytorch, open_clip and transformers on the same random weights
	$(call setup,.venv-peers,peers)
	$(PEERS) -m pytest tests/parity -n 2

learn:  ## puts the claims of the papers to the test; hours where nothing is recorded yet
	$(call setup,.venv,test)
	$(PY) -m openvocab.cli claims --out benchmarks/results/claims

browser:  ## the page in a real Chromium
	$(call setup,.venv,test)
	$(PY) -m pytest tests/unit/serve -m browser

slow:  ## tests of more than two minutes
	$(call setup,.venv,test)
	$(PY) -m pytest -m slow

bench:  ## side by side with peers, into benchmarks/results
	$(call setup,.venv-peers,peers)
	for script in coverage tokenizer preprocess loss world embed train video; do $(PEERS) benchmarks/$$script.py || exit 1; done

speedrun:  ## seconds from random weights to 95 % on held-out colour-shape pairs
	$(call setup,.venv,fast)
	$(PY) benchmarks/speedrun.py

house:  ## size of the house: lines, longest files, public names, options, repeated blocks
	$(call setup,.venv,test)
	$(PY) scripts/house.py

gallery:  ## the pictures of the docs
	$(call setup,.venv,fast)
	$(PY) scripts/gallery.py

format:
	$(call setup,.venv,test)
	$(PY) -m ruff check --fix . && $(PY) -m ruff format .

published:  ## for anyone online: download public weights and compare with recorded numbers
	$(call setup,.venv,fast)
	$(PY) scripts/published.py

gpu:  ## bf16 and compile parity, training speed, on a machine with a GPU
	$(call setup,.venv,test)
	$(PY) benchmarks/gpu.py
