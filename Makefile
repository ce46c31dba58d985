# transact. `make` alone lists the commands.
#
# Variables:
#   PYTHON  the interpreter that .venv is made with (default: python3, 3.11 or newer)
#   TORCH   what pip installs for torch. Default without a GPU: torch==2.13.0, which is a CPU build where pip finds
#           one (elsewhere: TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu");
#           default with a GPU: torch, the newest build of PyPI.
#   TORCH_CPU  the same for the environments of `runtimes`, which compute on CPUs (default: torch==2.13.0)
#   TEXT, TASKS  folders for bench-real: text (.jsonl documents with a source, .txt held out), lm-eval tasks
#   PART    of gpu-check: works, fast, chain (default: all three)
#   PYTHON_RUN  the interpreter that commands run with (default: .venv's). `make gpu-check PYTHON_RUN=python3` uses
#           the torch that a machine already has, and makes no .venv.

PYTHON ?= python3
HAS_GPU = $(findstring GPU,$(shell nvidia-smi -L 2>/dev/null))
TORCH ?= $(if $(HAS_GPU),torch,torch==2.13.0)
TORCH_CPU ?= torch==2.13.0
VENV := .venv
PYTHON_RUN ?= $(VENV)/bin/python
# Stamps: what running needs is installed; what developing needs too.
RUN := $(if $(filter $(VENV)/bin/python,$(PYTHON_RUN)),$(VENV)/run,)
SETUP := $(if $(RUN),$(VENV)/ready,)
INSTALL := $(VENV)/bin/python -m pip install --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test runtimes test-runtimes test-nightly test-cluster test-gguf test-report lint check bench bench-quality \
	bench-faults bench-efficiency bench-memory bench-real bench-tokenizing bench-data ablations gpu-check gpu-wheels docs clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

$(VENV)/run: pyproject.toml .ci/constraints/run.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'error: Python 3.11 or newer is needed; name it with PYTHON=...'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'error: this Python cannot make virtual environments: apt-get install python3-venv'; exit 1; }
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --no-deps --require-hashes --requirement .ci/constraints/run.txt
	$(INSTALL) $(TORCH)
	$(INSTALL) --no-index --no-build-isolation --editable .
	@touch $@

$(VENV)/ready: $(VENV)/run .ci/constraints/dev.txt
	$(INSTALL) --no-deps --require-hashes --requirement .ci/constraints/dev.txt
	$(INSTALL) --no-index --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(RUN) ## prune a small LLaMA on two ZeRO-3 ranks of this machine: minutes
	$(PYTHON_RUN) -m transact.run +experiment=demo
	@echo 'This parent is a toy of 2.3 million parameters: docs/results.md has figures of a real LLaMA.'

test: $(SETUP) ## all tests: minutes
	$(PYTHON_RUN) -m pytest --numprocesses 2 tests/unit
	$(PYTHON_RUN) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --ignore tests/unit

test-report: $(SETUP) ## the report page in a headless chromium; screenshots go to outputs/report_screenshots
	TRANSACT_TESTS_NEED_CHROMIUM=1 $(PYTHON_RUN) -m pytest tests/report tests/unit/report

test-gguf: $(SETUP) ## the GGUF file in a real llama.cpp, prebuilt, from PyPI
	$(PYTHON_RUN) -m pytest tests/gguf

RUNTIMES := $(patsubst .ci/constraints/runtimes/%.txt,.cache/runtimes/%/ready,$(wildcard .ci/constraints/runtimes/*.txt))

.cache/runtimes/%/ready: .ci/constraints/runtimes/%.txt
	rm -rf $(@D) && mkdir -p $(dir $(@D)) && $(PYTHON) -m venv $(@D)
	if grep -q 'needs torch' $<; then $(@D)/bin/python -m pip install --quiet $(TORCH_CPU); fi
	$(@D)/bin/python -m pip install --quiet --no-deps --requirement $<
	@touch $@

# What CI installs: within 12 minutes with the tests. The others are of `test-nightly`.
QUICK_RUNTIMES := $(patsubst %,.cache/runtimes/%/ready,vllm llama_cpp mlx)

runtimes: $(RUNTIMES) ## vLLM, llama.cpp, mlx-lm, ExecuTorch, ONNX Runtime GenAI, llm-compressor for CPUs, each in its environment: 8 GB, minutes

RUNTIME_TESTS = TRANSACT_TESTS_NEED_RUNTIMES=1 $(PYTHON_RUN) -m pytest --numprocesses 2 --dist loadfile tests/runtimes

test-runtimes: $(SETUP) $(QUICK_RUNTIMES) ## exports in vLLM, llama.cpp and mlx-lm, against transformers: five minutes
	$(RUNTIME_TESTS) -m 'runtimes and not nightly'

test-nightly: $(SETUP) $(RUNTIMES) ## the same in ExecuTorch and ONNX Runtime GenAI, and variants of llm-compressor: a quarter of an hour
	$(RUNTIME_TESTS) -m nightly

test-cluster: $(SETUP) ## jobs on a real SLURM of this machine, killed in every way: a quarter of an hour
	$(PYTHON_RUN) -m pytest -m gauntlet tests/cluster

lint: $(SETUP) ## ruff, mypy, and whether documents point at what there is and tell what was measured
	$(PYTHON_RUN) -m ruff check .
	$(PYTHON_RUN) -m ruff format --check .
	$(PYTHON_RUN) -m mypy transact benchmarks
	$(PYTHON_RUN) .ci/check_links.py
	$(PYTHON_RUN) .ci/check_tests.py
	$(PYTHON_RUN) -m benchmarks.published --check

check: lint ## the same, and the unit tests: a minute or two
	$(PYTHON_RUN) -m pytest -q --numprocesses 2 tests/unit

bench: $(SETUP) ## throughput, collectives and host time, the cost of saving and of packing, written to benchmarks/results
	for stage in 0 3; do \
		$(PYTHON_RUN) -m benchmarks.throughput --processes 2 --size 14m --zero-stage $$stage --steps 4 && \
		$(PYTHON_RUN) -m benchmarks.throughput --processes 2 --size 135m --zero-stage $$stage --steps 1 \
			--micro-batch-sequences 2 --accumulation 3 --repetitions 3 || exit 1; done
	$(PYTHON_RUN) -m benchmarks.engine_work --processes 2
	$(PYTHON_RUN) -m benchmarks.saving --processes 2
	$(PYTHON_RUN) -m benchmarks.packing --processes 2

bench-quality: $(SETUP) ## what every method keeps of the demo parent: about an hour
	$(PYTHON_RUN) -m benchmarks.quality

bench-faults: $(SETUP) ## 30 kills of a job at random moments: about half an hour
	$(PYTHON_RUN) -m benchmarks.faults

bench-efficiency: $(SETUP) ## latency and memory at half and a fifth of the parameters: about a quarter of an hour
	$(PYTHON_RUN) -m benchmarks.efficiency

bench-memory: $(SETUP) ## the estimate's memory model against what 1, 2 and 4 ranks allocate: about ten minutes
	for ranks in 1 2 4; do $(PYTHON_RUN) -m benchmarks.memory_model --processes $$ranks || exit 1; done

bench-real: $(SETUP) ## what every method keeps of SmolLM2-135M, on TEXT=folder (and TASKS=folder): hours, can be stopped
	$(PYTHON_RUN) -m benchmarks.real_model $(if $(TEXT),--text "$(TEXT)") $(if $(TASKS),--tasks "$(TASKS)")

ablations: $(SETUP) ## the paper's ablations on the demo parent: a table and a picture
	$(PYTHON_RUN) -m benchmarks.ablations

PART ?= works fast chain
gpu-check: $(SETUP) ## check and measure on a GPU, nine minutes for each PART=works, fast and chain
	status=0; for part in $(PART); do $(PYTHON_RUN) -m benchmarks.gpu_check --part $$part || status=1; done; exit $$status

GPU_PYTHON ?= 3.12
gpu-wheels: $(RUN) ## collect in .wheels what a machine with torch and transformers lacks for gpu-check, in GPU_PYTHON=3.12
	$(PYTHON_RUN) -m benchmarks.gpu_wheels --python $(GPU_PYTHON) --folder .wheels

bench-tokenizing: $(SETUP) ## two processes that tokenise against one: a minute or two
	$(PYTHON_RUN) -m benchmarks.tokenizing

bench-data: $(SETUP) ## tokenising beside the tokenizer alone, batches beside a memory map, mixtures: a minute
	RAYON_NUM_THREADS=1 $(PYTHON_RUN) -m benchmarks.data_speed

docs: $(SETUP) ## write docs/config anew from the settings, and tables from benchmarks/results
	$(PYTHON_RUN) -m transact.config.help --write docs/config
	$(PYTHON_RUN) -m benchmarks.published

clean: ## remove the virtual environment; outputs/ stays
	rm -rf $(VENV)
