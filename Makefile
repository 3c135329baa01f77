# Limner's commands. `make help` lists them; each one works from a new clone.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BASE ?= origin/main
MINUTES ?= 60
LATENTS := out/training/sketch/latents.npy

.PHONY: help install lock protos check-protos format check test demo serve bench bench-inpaint bench-diffusion bench-quality train-erase train-sketch clean

help: ## List these commands
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv and install Limner, its client and the tools at the locked versions

$(STAMP): pyproject.toml clients/python/pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Limner needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock uv "$$(grep ^torch== requirements.lock)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.lock -e clients/python -e '.[dev]'
	@touch $(STAMP)

# Which libraries torch needs beside it depends on its build (for CPUs or for CUDA), so these are not locked.
lock: ## Choose the versions in requirements.lock anew
	$(BIN)/uv pip compile --quiet --upgrade --python $(BIN)/python --extra dev --no-header --no-annotate --no-emit-package limner-client pyproject.toml clients/python/pyproject.toml -o requirements.lock
	sed -i.old -E '/^(nvidia|cuda|triton)/d' requirements.lock && rm requirements.lock.old

protos: install ## Generate the stubs in clients/python from protos/
	tools/protos.sh generate

check-protos: protos ## Generate the stubs and fail if they differ from what is committed
	@git diff --exit-code --stat -- clients/python/limner/v1 && test -z "$$(git status --porcelain -- clients/python/limner/v1)" || { echo "the stubs are not those of protos/: run make protos and commit" >&2; exit 1; }

format: install ## Format and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: install ## Lint, types, layers, the contract's style and its compatibility with $(BASE)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	tools/protos.sh lint
	@if git rev-parse -q --verify $(BASE)^{commit} >/dev/null && git cat-file -e $(BASE):protos/limner/v1/images.proto 2>/dev/null; then tools/protos.sh breaking $(BASE); else echo "no protos at $(BASE) to compare with: compatibility not checked"; fi

test: install ## Run every test
	$(BIN)/pytest

demo: install ## Erase, generate, inpaint and outpaint with the models that ship; write out/demo/sheet.png
	$(BIN)/python examples/demo.py

serve: install ## Run all services in the foreground; Ctrl-C stops them
	$(BIN)/limner up

bench: install ## Measure, and write out/bench/results.json
	$(BIN)/python -m bench

bench-inpaint: install ## Measure the inpainting networks, by engine, precision and crowd; write out/bench/inpaint.json
	$(BIN)/python -m bench.inpaint

bench-diffusion: install ## Measure the diffusion server against diffusers, and with a GPU the published sizes; write out/bench/diffusion.json
	$(BIN)/python -m bench.diffusion

bench-quality: install ## Compare fills on photographs with known holes; write out/quality/grid.png
	$(BIN)/python -m bench.quality

# Both go on from where the last run ended. The weights are written to where they ship; git shows what changed.
train-erase: install ## Train limner-erase for MINUTES=60, export it and compare it with the other fills
	$(BIN)/python -m training.erase.train --minutes $(MINUTES)
	$(BIN)/python -m training.erase.export
	$(BIN)/python -m training.erase.evaluate

train-sketch: install $(LATENTS) ## Train limner-sketch for MINUTES=60, export it and see what it draws
	$(BIN)/python -m training.sketch.train --minutes $(MINUTES)
	$(BIN)/python -m training.sketch.export
	$(BIN)/python -m training.sketch.classifier
	$(BIN)/python -m training.sketch.evaluate

# Made once: what was learnt from latents holds for the autoencoder that they came from alone.
$(LATENTS): | install
	$(BIN)/python -m training.sketch.emoji
	$(BIN)/python -m training.sketch.vae --minutes 40
	$(BIN)/python -m training.sketch.latents

clean: ## Remove what was built here
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
