# Everything that a developer does with SegAdapt; `make help` lists it.

# The interpreter that QGIS embeds on Debian; another python3 on PATH (conda, pyenv) cannot import qgis.
HOST_PYTHON = /usr/bin/python3
# Looked up when a recipe runs, hence `=`: before `make setup` there may be no QGIS to make the key from.
ENVIRONMENT = $(shell $(HOST_PYTHON) processing/environment.py path)
PYTHON = $(ENVIRONMENT)/bin/python
# Scripts import the checkout as `segadapt`, whatever its folder is called.
RUN = PYTHONPATH="$(CURDIR)/.link" "$(PYTHON)"
# A real X server for mouse and key events; a QT_QPA_PLATFORM of the caller would bypass it.
DISPLAY_RUN = QT_QPA_PLATFORM=xcb xvfb-run -a -s "-screen 0 1600x1200x24"

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types link package bench study train-adapter environment

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing, link this checkout into QGIS; says so where nothing is to be done
	@tools/setup.sh

demo: setup ## segment the sample scene in headless QGIS; results and a picture in demo-output/
	@QT_QPA_PLATFORM=offscreen $(RUN) tools/demo.py $(ARGS)

test: setup ## run all tests with QGIS on a virtual display, on two cores (ARGS="-n 0 -k name" for a few)
	@REQUIRE_QGIS=1 OMP_NUM_THREADS=1 $(DISPLAY_RUN) "$(ENVIRONMENT)/bin/pytest" -rs -n 2 --dist loadgroup $(ARGS)

lint: environment ## check style and formatting with ruff
	@"$(PYTHON)" -m ruff check .
	@"$(PYTHON)" -m ruff format --check .

types: environment ## check types with mypy, strictly
	@mkdir -p .link && ln -sfn .. .link/segadapt
	@"$(PYTHON)" -m mypy .link/segadapt

link: ## link this checkout into the QGIS profile and enable the plugin
	@tools/setup.sh link

package: environment ## build dist/segadapt-<version>.zip and scan it as the plugin repository does
	@"$(PYTHON)" tools/package.py

bench: setup ## measure speed; BENCH=clicks, similar, review, class_map: accuracy on labelled imagery, session: a long one
	@QT_QPA_PLATFORM=offscreen $(RUN) benchmarks/$(or $(BENCH),run).py $(ARGS)

study: setup ## measure adaptation on the labelled imagery (ARGS="--pairs banepa --seeds 0"); hours on a CPU, resumable
	@QT_QPA_PLATFORM=offscreen OMP_NUM_THREADS=1 $(RUN) -W ignore benchmarks/study.py $(ARGS)

train-adapter: setup ## train the adapter that ships, one place left out in turn, then on all (two hours on 2 CPU cores)
	@QT_QPA_PLATFORM=offscreen $(RUN) tools/train_adapter.py $(ARGS)

environment:
	@test -x "$(PYTHON)" || { echo "No Python environment yet; run 'make setup' first." >&2; exit 1; }
