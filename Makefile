# Everything runs in .venv, which each target makes when it is missing or out of date.
PYTHON ?= python3
BIN = .venv/bin
WORKERS = --numprocesses auto --maxprocesses 8 --dist worksteal
# k-diffusion is a test peer; installed without its dependencies, since only its sampling file is used
PEERS = k-diffusion==0.1.1.post1 torchsde==0.2.6 torchdiffeq==0.2.5 trampoline==0.1.2

# what `make test-lowest` runs: loading, commands, pipelines, parity of the samplers with k-diffusion
LOWEST = $(addprefix tests/,whole/test_hostile_models.py pipelines/test_loading.py cli/test_terminal.py cli/test_cli.py \
	test_exports.py zoo/test_zoo.py pipelines/test_pipelines.py parity/test_parity_k_diffusion.py)

.PHONY: venv demo test test-all test-lowest bench bench-tune report report-video claims check clean

venv: .venv/ready

.venv/ready: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PEERS)
	touch $@

demo: venv
	$(BIN)/timonel generate "red apple" --steps 12 --sampler dpmpp_2m/karras --seed 7 --guidance-until 0.4 --preview
	$(BIN)/timonel replay out/red-apple-7.png
	$(BIN)/timonel animate out/red-apple-7.png --steps 12 --motion 40 --out out/red-apple.mp4 --overwrite

test: check
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

# also draws new random cases for the laws, where `make test` repeats the same ones
test-all: check
	$(BIN)/python -m pytest $(WORKERS) --hypothesis-profile explore

# the oldest versions that pyproject allows, but for torch, in an environment of their own; their warnings are not ours
test-lowest: .lowest/ready
	OMP_NUM_THREADS=1 .lowest/bin/python -m pytest $(WORKERS) -W default --disable-warnings -m "not slow" $(LOWEST)

.lowest/ready: pyproject.toml constraints.txt Makefile
	rm -rf .lowest
	$(PYTHON) -m venv .lowest
	.lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch uv
	grep '^torch==' constraints.txt > .lowest/torch.txt
	.lowest/bin/uv pip install --quiet --python .lowest/bin/python --resolution lowest-direct -c .lowest/torch.txt \
		--editable '.[dev]'
	.lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(PEERS)
	touch $@

# 60 runs of the shipped model on one page, and the claims of the tutorials with what was measured
report: venv
	$(BIN)/timonel compare "red apple" --sampler euler dpmpp_2m dpmpp_2m/karras dpmpp_2m_sde/karras ays --steps 6 10 20 --seeds 4 -o out/report
report-video: demo
	$(BIN)/timonel compare out/red-apple-7.png --model emoji-video --sampler euler dpmpp_2m dpmpp_2m_sde --steps 6 12 --seeds 4 -o out/report-video
claims: venv
	$(BIN)/python docs/make_claims.py

bench: venv
	$(BIN)/python benchmarks/run_all.py

# fitted samplers against the usual ones, on samples that no fit has seen; into docs/tune.md
bench-tune: venv
	$(BIN)/python benchmarks/tune.py

check: venv
	$(BIN)/ruff check --no-cache src tests benchmarks training docs
	$(BIN)/ruff format --check src tests benchmarks training
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .lowest out build dist
