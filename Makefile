# make demo    render the embedded model's sample jobs to MP4, accelerated, and print the report
# make test    the tests (make test-fast: the quick ones); make lint: ruff and mypy
# make ui      the web page, on http://127.0.0.1:7860
# Each target sets up .venv by itself.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: all demo ui browser screenshots test test-fast lint tables cards wheel clean bench bench-attention \
  fuzz proofs bench-motion bench-warp bench-batch bench-memory bench-rehash bench-precision bench-ui gpu-report \
  bench-avx2 bench-demo bench-gpu bench-tables
all: $(READY)

$(READY): pyproject.toml constraints.txt $(wildcard kernels/csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ui,dev]'
	touch $@

demo: $(READY)
	$(BIN)/accel render samples/demo.yaml --out out/demo --compare

ui: $(READY)
	$(BIN)/accel ui

# The browser tests want a Chromium; where it cannot be installed they are skipped and say so.
browser:
	@command -v chromium >/dev/null \
	  || { apt-get update -q && apt-get install -yq --no-install-recommends chromium; } >/dev/null 2>&1 \
	  || echo 'no Chromium and no way to install it: the browser tests are skipped'

screenshots: $(READY)
	$(BIN)/python tests/bench/screenshots.py --out samples/ui

bench-ui: $(READY)
	$(BIN)/python tests/bench/bench_ui.py

# Two processes with one thread each: most tests are too small for two threads to pay.
test: $(READY) browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m 'not proof' -n 2 --dist loadfile

# The slow proofs that `make test` leaves out.
proofs: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m proof -n 2 --dist loadfile

# The tests that take a second or two each: a few minutes in all on two cores.
test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m 'not slow' -n 2 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy accel app.py

# The README's tables of figures, from the rows in tests/bench/results.
tables: $(READY)
	$(BIN)/python tests/bench/tables.py

# The simulated tables in docs/cards.md and docs/recipes.md: about an hour.
cards: $(READY)
	$(BIN)/python tests/bench/card_table.py
	$(BIN)/python tests/bench/card_table.py --recipes

# One wheel for every Python from 3.11 on, on Linux x86-64: to dist/, after a try in a new environment.
wheel: $(READY)
	$(BIN)/python tests/release/build_wheel.py dist

# Everything that is measured or simulated, and then all tables made of it: many hours, on a machine that does
# nothing else. What a bench wrote before in build/bench is taken too, so a run can be made in parts. RELEASED: the file
# of the code released with Go-with-the-Flow (see bench_warp.py), without which its row stays as it is.
bench: proofs fuzz bench-attention bench-warp bench-avx2 bench-demo bench-motion bench-memory bench-precision \
  bench-rehash bench-gpu cards bench-tables

JSON = --json build/bench

# Takes what tables show from what benches wrote, and writes the README anew.
bench-tables: $(READY)
	$(BIN)/python tests/bench/tables.py --take $$(ls build/bench/*.json)

# 3,000 random attention calls beside torch's and fp64.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/fuzz_attention.py

bench-attention: $(READY)
	$(BIN)/python tests/bench/bench_attention.py $(JSON)/attention.json
	$(BIN)/python tests/bench/bench_attention.py --crossover $(JSON)/crossover.json
	$(BIN)/python tests/bench/bench_wan_block.py $(JSON)/wan-block.json
	$(BIN)/python tests/bench/bench_sinks.py

# The column of AVX2 in the first table.
bench-avx2: $(READY)
	ACCEL_ISA=avx2 $(BIN)/python tests/bench/bench_attention.py $(JSON)/attention-avx2.json
	ACCEL_ISA=avx2 $(BIN)/python tests/bench/bench_wan_block.py $(JSON)/wan-block-avx2.json
	ACCEL_ISA=avx2 $(BIN)/python tests/bench/bench_warp.py $(if $(RELEASED),--released $(RELEASED)) \
	  $(JSON)/warp-avx2.json

bench-demo: $(READY)
	$(BIN)/python tests/bench/bench_demo.py $(JSON)/demo.json

bench-precision: $(READY)
	$(BIN)/python tests/bench/bench_precision.py $(JSON)/precision.json
	$(BIN)/python tests/bench/bench_precision.py --time

gpu-report: $(READY)
	$(BIN)/python tests/bench/gpu_report.py --json build/gpu-report.json

# Without a card it says so and measures nothing.
bench-gpu: $(READY)
	$(BIN)/python tests/bench/gpu_attention.py $(JSON)/gpu-attention.json

bench-batch: $(READY)
	$(BIN)/python tests/bench/bench_dry_run.py
	$(BIN)/python tests/bench/bench_survival.py
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt 'ray>=2.49'
	$(BIN)/python tests/bench/bench_ray.py

bench-motion: $(READY)
	$(BIN)/python tests/bench/bench_motion.py
	$(BIN)/python tests/bench/bench_motion_groups.py $(JSON)/motion-groups.json
	$(BIN)/python tests/bench/bench_plain_noise.py $(JSON)/plain-noise.json
	$(BIN)/python tests/bench/bench_drawn_motion.py
	$(BIN)/python tests/bench/bench_shapes.py

bench-warp: $(READY)
	$(BIN)/python tests/bench/bench_warp.py $(JSON)/warp.json

bench-memory: $(READY)
	$(BIN)/python tests/bench/bench_memory.py $(JSON)/memory.json
	$(BIN)/python tests/bench/bench_memory.py --denoisers $(JSON)/denoisers.json
	$(BIN)/python tests/bench/bench_memory.py --unets $(JSON)/unets.json
	$(BIN)/python tests/bench/bench_memory.py --decoders $(JSON)/decoders.json
	$(BIN)/python tests/bench/bench_memory.py --time

bench-rehash: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python tests/bench/bench_rehash.py $(JSON)/rehash.json
	$(BIN)/python tests/bench/bench_rehash_models.py --model wan $(JSON)/rehash-models.json
	$(BIN)/python tests/bench/bench_rehash_models.py --model dit $(JSON)/rehash-models.json
	$(BIN)/python tests/bench/bench_rehash_models.py --model unet $(JSON)/rehash-models.json

clean:
	rm -rf $(VENV) out build
