"""A server with users: who may not change a registered model keeps the result, and is told what is missing."""

import os
import re
import shlex

import mlflow
import pytest
import requests

from drilldown import __main__
from drilldown.learning.checkpoint import FOLDER_VARIABLE
from drilldown.tracking.tags import ours
from tests.support.programs import server
from tests.support.registered import verify_in_process

pytestmark = pytest.mark.slow
PASSWORD = "a password of the tests"
MODEL = "digits-cnn"


@pytest.fixture(scope="module")
def with_users(tmp_path_factory, empty_database):
    """The address of a server where everybody may read, and only the owner may change."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "users.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder / 'users.db'}\nadmin_username = admin\n"
        f"admin_password = {PASSWORD}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"  # each check of a password takes the server a good part of a second
    )
    settings = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "users.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret of the tests",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    options = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder)]
    command = ["mlflow", "server", "--app-name", "basic-auth", "--workers", "1", *options]
    with server(command, kept | settings) as port:
        address = f"http://127.0.0.1:{port}"
        for user in ("owner", "second"):
            ask(address, "2.0/mlflow/users/create", username=user, password=PASSWORD)
        yield address


def ask(address, path, **content):
    answer = requests.post(f"{address}/api/{path}", json=content, auth=("admin", PASSWORD), timeout=60)
    answer.raise_for_status()


@pytest.mark.fault(
    "a registered model of another user",
    "a server with users, where the second one may only read it",
    "told before training; the run is FINISHED with its result; with the permission, the printed line registers it",
)
def test_a_user_who_may_not_change_a_registered_model(with_users, tmp_path, monkeypatch, capsys):
    verify_in_process(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "checkpoints"))  # not the user's cache
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_users)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "owner")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    # A thread of MLflow's removes the last one at any time, and requests must not list the variables meanwhile.
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "_MLFLOW_TELEMETRY_SESSION_ID"):
        monkeypatch.delenv(name, raising=False)
    mlflow.set_tracking_uri(with_users)
    client = mlflow.MlflowClient()
    client.create_registered_model(MODEL)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "second")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the second")
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    __main__.main(["step2", "--dataset", "digits", "--epochs", "5", "--target", "0", "--engine", "torch"])
    said = capsys.readouterr()
    lacks = (
        f"second lacks the permission EDIT on the registered model {MODEL}, which its owner or an administrator of the "
        "server can give"
    )
    assert f"warning: {lacks}: the result will be kept, and not registered" in said.err
    (line,) = re.findall(rf"^not registered: {lacks}; to register it then: (.*)$", said.out, flags=re.M)
    experiment = client.get_experiment_by_name("of the second").experiment_id
    (run,) = client.search_runs([experiment], "tags.`drilldown.kind` = 'train'")
    assert (run.info.status, ours(run.data.tags)["not.registered"]) == ("FINISHED", lacks)
    assert client.search_model_versions(f"name = '{MODEL}'") == []

    words = shlex.split(line)
    register = words[words.index("drilldown") + 1 :]
    with pytest.raises(SystemExit):
        __main__.main(register)
    assert f"error: {lacks}" in capsys.readouterr().err
    grant = {"username": "second", "resource_type": "registered_model", "resource_id": MODEL, "permission": "EDIT"}
    ask(with_users, "3.0/mlflow/users/permissions/grant", **grant)
    __main__.main(register)
    assert f"registered {MODEL} version 1 as champion" in capsys.readouterr().out
    while mlflow.active_run():
        mlflow.end_run()
