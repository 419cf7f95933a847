# make step4 and make test set everything up by themselves; PYTHON chooses another interpreter,
# ARGS is handed on: make step4 ARGS='-P seed=1'; make predict IMAGES=folder labels image files
PYTHON ?= python3
BIN := .venv/bin
STEPS := $(patsubst steps/%.py,%,$(wildcard steps/*.py))

.PHONY: setup store $(STEPS) all compare repeat predict promote rollback ui serve test quick faults check bench lock

setup: .venv/.installed

# The mark is written last: an installation that was cut off starts again.
.venv/.installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep -o '^uv==[^ ]*' requirements.txt)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.txt
	touch $@

# The environment's programs come first, so that `mlflow run` calls its python.
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Should `mlflow run` be killed while it makes the database, MLflow never opens that again; this makes it anew.
store: setup
	$(if $(MLFLOW_TRACKING_URI),,python -m src.lifecycle.database mlflow.db)

$(STEPS) all compare repeat promote rollback: store
	mlflow run . -e $@ --env-manager local $(ARGS)

predict: store
	mlflow run . -e predict --env-manager local -P images='$(IMAGES)' $(ARGS)

# Without the dozen processes that wait for jobs, of which this project has none.
ui: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
ui: setup
	mlflow ui $(ARGS)

# The models are exported on the CPU; MLflow would put them on a CUDA device where there is one.
serve: export MLFLOW_DEFAULT_PREDICTION_DEVICE := cpu
serve: setup
	mlflow models serve --model-uri models:/mnist-cnn@champion --env-manager local --port 5001

test: setup
	pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

quick: setup
	pytest -m "not slow" $(ARGS)

faults: setup
	pytest -n auto --dist load -m fault --tries 4 --write-table $(ARGS)

check: setup
	ruff check .
	ruff format --check .

bench: setup
	python -m benchmarks $(ARGS)

lock: setup
	uv pip compile --quiet --universal --python-version 3.11 requirements.in --output-file requirements.txt
