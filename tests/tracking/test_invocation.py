"""A line to be typed begins as the user's own command did, and leads to the same store and experiment."""

import mlflow
import pytest

from drilldown import process
from drilldown.steps import ROOT
from drilldown.tracking import invocation, runs
from drilldown.tracking.pages import VIEW


@pytest.fixture
def started(store, monkeypatch):
    """Set how the user started this process."""

    def start(how, **tags):
        if how == "mlflow run":
            run_id = store.create_run("0", tags=tags).info.run_id
            monkeypatch.setattr(process, "OPENED_RUN", run_id)
            how = ""
        monkeypatch.setenv(invocation.STARTER, how)

    monkeypatch.setattr(process, "OPENED_RUN", None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the store is where MLflow looks for it
    return start


@pytest.mark.parametrize(
    ("how", "tags", "expected"),
    [
        ("", {}, "python -m drilldown step4 --resume ab12 --data_dir '/my $data'"),
        ("make", {}, """make step4 ARGS='-P resume=ab12 -P '"'"'data_dir=/my $$data'"'"''"""),
        ("mlflow run", {}, "mlflow run . -e step4 --env-manager local -P resume=ab12 -P 'data_dir=/my $data'"),
        (
            "mlflow run",
            {"mlflow.project.env": "uv"},
            "mlflow run . -e step4 --env-manager uv -P resume=ab12 -P 'data_dir=/my $data'",
        ),
    ],
)
def test_a_command_begins_as_the_users_did(started, how, tags, expected):
    started(how, **tags)
    assert invocation.command("step4", resume="ab12", data_dir="/my $data") == expected


def test_image_files_have_a_variable_of_their_own_in_make(started):
    started("make")
    assert invocation.command("predict", images="a b", model="m") == "make predict IMAGES='a b' ARGS='-P model=m'"
    started("")
    assert invocation.command("predict", images="a b", model="m") == (
        "python -m drilldown predict --images 'a b' --model m"
    )


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("", "MLFLOW_EXPERIMENT_NAME='my runs' python -m drilldown compare"),
        ("make", "MLFLOW_EXPERIMENT_NAME='my runs' make compare"),
        ("mlflow run", "mlflow run . -e compare --env-manager local --experiment-name 'my runs'"),
    ],
)
def test_the_experiment_is_named_unless_the_command_takes_it_by_itself(started, store, monkeypatch, how, expected):
    started(how)
    own, default = expected.count("mlflow run"), invocation.EXPERIMENT
    names = {store.create_experiment(name): name for name in ("my runs", default)} | {"0": "Default"}
    for experiment, name in names.items():
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
        with runs.run("a run", {}):
            line = invocation.command("compare")
        if name == "my runs":
            assert line == expected
        else:
            assert (name in line) is (name != ("Default" if own else default))


@pytest.mark.parametrize(
    ("uri", "variable"),
    [
        ("sqlite:///other.db", "MLFLOW_TRACKING_URI=sqlite:///other.db"),
        ("http://127.0.0.1:5002", "MLFLOW_TRACKING_URI=http://127.0.0.1:5002"),
        ("http://me:secret@host", "MLFLOW_TRACKING_URI=http://host"),
        ("mysql://me:secret@host/runs", "MLFLOW_TRACKING_URI=mysql://USER:PASSWORD@host/runs"),
    ],
)
def test_the_store_is_named_unless_it_is_the_default_one(started, uri, variable):
    mlflow.set_tracking_uri(uri)
    started("")
    assert invocation.command("compare") == f"{variable} python -m drilldown compare"
    assert invocation.serve_command("mnist-cnn") == f"{variable} python -m drilldown serve"
    started("make")
    assert invocation.serve_command("digits-cnn") == f"{variable} make serve MODEL=digits-cnn"
    started("local")
    assert invocation.command("compare") == f"{variable} mlflow run {ROOT} -e compare --env-manager local"


def test_what_follows_a_run(started, store, tmp_path):
    started("make")
    with runs.run("a run", {}) as run_id:
        said = invocation.next_steps(("a.png", "b.csv"), ["make serve", "make compare", "x" * 120], "digits-cnn")
    assert said.splitlines() == [
        f"run:    http://127.0.0.1:5000/#/experiments/0/runs/{run_id}{VIEW} (served by make ui)",
        f"files:  {store.get_run(run_id).info.artifact_uri}: a.png, b.csv",
        "load:   mlflow.pyfunc.load_model('models:/digits-cnn@champion')",
        "next:   make serve, or make compare",
    ]
    started("local")
    with runs.run("another", {}) as run_id:
        assert invocation.next_steps((), ["x" * 200]).splitlines() == [
            f"run:    http://127.0.0.1:5000/#/experiments/0/runs/{run_id}{VIEW} (served by mlflow ui)",
            f"next:   {'x' * 200}",
        ]


def test_a_store_in_another_file_is_given_to_the_ui(started, store, tmp_path, monkeypatch):
    file = (tmp_path / "mlflow.db").rename(tmp_path / "other.db")
    mlflow.set_tracking_uri(f"sqlite:///{file}")
    for how, ui in (("make", f"make ui ARGS='--backend-store-uri sqlite:///{file}'"),
                    ("", f"mlflow ui --backend-store-uri sqlite:///{file}")):  # fmt: skip
        started(how)
        with runs.run("a run", {}):
            assert invocation.next_steps(()).endswith(f"(served by {ui})")


def test_the_files_of_a_server_have_no_folder_and_its_page_is_its_own(started, store, monkeypatch):
    started("make")
    with runs.run("a run", {}) as run_id:
        monkeypatch.setattr(invocation.mlflow, "get_tracking_uri", lambda: "https://host/")
        monkeypatch.setattr(mlflow.active_run().info, "_artifact_uri", "mlflow-artifacts:/0/files")
        assert invocation.next_steps(("a.png",)) == f"run:    https://host/#/experiments/0/runs/{run_id}{VIEW}"


def test_a_nested_run_leaves_it_to_its_parent(started, store):
    started("")
    with runs.run("parent", {}):
        assert invocation.next_steps(())
        with mlflow.start_run(nested=True):
            assert invocation.next_steps(("a.png",), ["make compare"]) == ""
