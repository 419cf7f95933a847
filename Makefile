# `make` lists the targets. Each sets up what it needs by itself. PYTHON chooses another interpreter; ARGS is passed on,
# as in: make step4 ARGS='-P seed=1'.
PYTHON ?= python3
BIN := .venv/bin
STEPS := $(patsubst steps/%.py,%,$(wildcard steps/*.py))
RUNS := $(STEPS) all compare repeat tune register promote rollback close predict

.DEFAULT_GOAL := help
.PHONY: help setup store $(RUNS) relocate status ui serve server cluster draw test servers quick faults check bench docs pictures lock

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make setup                     create .venv from requirements.txt (6 GB)
setup: .venv/.installed

# The mark is written last: an installation that was cut off starts again. Bytecode is compiled here, so that commands start
# sooner, also where Python may not write bytecode later.
.venv/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep -o '^uv==[^ ]*' requirements.txt)"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

# The environment's programs come first, so that `mlflow run` calls its python.
export PATH := $(CURDIR)/$(BIN):$(PATH)

# The experiment of the runs, unless the user names another by a variable or an option of `mlflow run`.
ifeq ($(MLFLOW_EXPERIMENT_ID)$(findstring --experiment-id,$(ARGS)),)
store $(RUNS): export MLFLOW_EXPERIMENT_NAME ?= mnist-drilldown
endif

# The commands that the program prints begin as its own did.
$(RUNS) relocate status serve draw: export DRILLDOWN_STARTER := make

# MLflow never opens a database again whose creation was cut off; this creates it whole.
store: setup
	$(if $(MLFLOW_TRACKING_URI),,python -m drilldown.tracking.database mlflow.db)

## make step1 … step4             train a step; it registers its model if that passes the gate
## make all                       train every step, and compare them
## make compare                   compare the finished runs of the steps
## make repeat                    train step 4 with ten seeds
## make tune                      search for a better recipe of step 4
## make register ARGS='-P run=ID'   register the model of finished run ID
## make promote ARGS='-P version=N'   make registered version N the champion
## make rollback                  make the previous champion the champion again
## make close ARGS='-P run=ID'    close a run that is open though its machine is gone
$(STEPS) all compare repeat tune register promote rollback close: store
	mlflow run . -e $@ --env-manager local $(ARGS)

## make predict IMAGES=folder     classify image files by the champion
predict: store
	mlflow run . -e predict --env-manager local -P images='$(IMAGES)' $(ARGS)

## make relocate                  tell the store that its folder has moved
# Not by `mlflow run`, which would open a run in a store that has lost its files.
relocate: setup
	@python -m drilldown relocate $(subst -P ,--,$(ARGS))

## make status                    champions, their history, and unfinished runs
# Not by `mlflow run`, which would open a run for it.
status: setup
	@python -m drilldown status $(subst -P ,--,$(ARGS))

## make ui                        MLflow's pages on http://127.0.0.1:5000
# Without the dozen processes that wait for jobs: this project has no jobs.
ui: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
ui: setup
	@python -m drilldown.tracking.pages $(ARGS)
	mlflow ui $(ARGS)

## make serve MODEL=mnist-cnn     serve the champion on http://127.0.0.1:5001
MODEL = mnist-cnn
serve: setup
	@python -m drilldown serve --model $(MODEL) $(subst -P ,--,$(ARGS))

## make draw                      a page to draw digits on, http://127.0.0.1:5004
# Not by `mlflow run`, which would open a run for it.
draw: setup
	@python -m drilldown draw $(subst -P ,--,$(ARGS))

## make server                    a shared server on http://127.0.0.1:5002: PostgreSQL, an object store, users
# Its data lies in the folder SERVER.
SERVER = server
server: setup
	@exec python -m drilldown.server '$(SERVER)' $(ARGS)

## make cluster                   a Dask scheduler on tcp://127.0.0.1:8786 with two workers, for trying out
# Workers log to the store that MLFLOW_TRACKING_URI names where the command runs.
DASK := --host 127.0.0.1 --no-dashboard
cluster: export DASK_CONFIG := $(CURDIR)/dask.yaml
cluster: setup
	@dask scheduler --port 8786 $(DASK) & scheduler=$$!; \
	dask worker tcp://127.0.0.1:8786 --nworkers 1 --nthreads 1 $(DASK) & one=$$!; \
	dask worker tcp://127.0.0.1:8786 --nworkers 1 --nthreads 1 $(DASK) & two=$$!; \
	trap "kill $$scheduler $$one $$two 2>/dev/null; wait" INT TERM EXIT; \
	echo "train on it: make repeat ARGS='-P cluster=tcp://127.0.0.1:8786', with MLFLOW_TRACKING_URI=http://…"; wait

## make check                     style, types, import layers
check: setup
	ruff check .
	ruff format --check .
	mypy
	lint-imports

## make quick                     the tests that take seconds, without the injected faults
quick: setup
	pytest -n auto --dist load --ignore tests/faults -m "not slow and not fault" $(ARGS)

## make test                      all tests but those of `make servers` (10 to 15 minutes on two cores)
test: setup
	pytest -n auto --dist loadfile --no-loadscope-reorder -m "not servers" $(ARGS)

## make servers                   the tests with PostgreSQL, an object store and a Dask cluster
servers: setup
	pytest -n auto --dist loadfile -m servers $(ARGS)

## make faults                    inject every fault, several times, and write the table of docs/reliability.md
faults: setup
	pytest -n auto --dist load -m fault --tries 4 --write-table $(ARGS)

## make bench                     benchmarks (half an hour of a quiet machine)
bench: setup
	python -m benchmarks $(ARGS)

## make docs                      write the generated parts of README and docs from results/
docs: setup
	python docs/generate.py $(ARGS)

## make pictures                  take the pictures of README and docs again (needs Chromium)
pictures: setup
	python docs/pictures.py $(ARGS)

## make lock                      compile requirements.in to requirements.txt
lock: setup
	uv pip compile --quiet --universal --python-version 3.11 requirements.in --output-file requirements.txt
