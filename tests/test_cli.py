"""The command line: every bad value is one line that names the parameter, what it got and what it takes."""

import os
import subprocess
import sys
from dataclasses import replace

import mlflow
import pytest
import torch
from filelock import FileLock

from drilldown import __main__, cli, process, training
from drilldown.commands.command import command
from drilldown.errors import StoreError
from drilldown.inference import http, predict, serving
from drilldown.learning import data
from drilldown.registry import registry
from drilldown.steps import ROOT, load_step
from drilldown.tracking import runs
from drilldown.tracking.store import SHORT_TIMEOUTS, checkpoints, store_lock
from drilldown.tracking.tags import ours
from tests.support.interruption import interrupted_after_an_epoch
from tests.support.pictures import Brightest
from tests.support.programs import free_port

BAD = [
    ("seed", "-1", "seed is -1: it takes a whole number at least 0"),
    ("seed", "abc", "seed is 'abc': it takes a whole number"),
    ("seed", "", "seed is '': it takes a whole number"),
    ("seed", "1.5", "seed is '1.5': it takes a whole number"),
    ("seed", "99999999999", "seed is 99999999999: it takes a whole number at least 0 and at most 4,294,967,295"),
    (
        "dataset",
        "cifar",
        "dataset is 'cifar': it takes auto, mnist, digits, or the path of a folder with IDX files or of",
    ),
    ("dataset", "~nobody/x", "dataset is '~nobody/x': it takes auto, mnist, digits, or the path of"),
    ("dataset", "/" + "x" * 300, "it takes auto, mnist, digits, or the path of a folder"),
    ("dataset", "", "dataset is '': it takes auto, mnist, digits, or the path of a folder"),
    ("dataset", " ", "dataset is ' ': it takes auto, mnist, digits, or the path of a folder"),
    ("device", "tpu", "'--device': 'tpu' is not one of 'auto', 'cpu', 'cuda'"),
    ("epochs", "0", "epochs is 0: it takes a whole number at least 1"),
    ("epochs", "-3", "epochs is -3: it takes a whole number at least 1"),
    ("epochs", "ten", "epochs is 'ten': it takes a whole number at least 1"),
    ("epochs", "1e3", "epochs is '1e3': it takes a whole number at least 1"),
    ("batch_size", "0", "batch_size is 0: it takes a whole number at least 1"),
    ("batch_size", "-64", "batch_size is -64: it takes a whole number at least 1"),
    ("batch_size", "many", "batch_size is 'many': it takes a whole number at least 1"),
    ("lr", "0", "lr is 0.0: it takes a number above 0"),
    ("lr", "-0.1", "lr is -0.1: it takes a number above 0"),
    ("lr", "fast", "lr is 'fast': it takes a number above 0"),
    ("lr", "nan", "lr is nan: it takes a number above 0"),
    ("lr", "inf", "lr is inf: it takes a number above 0"),
    ("validation", "-1", "validation is -1: it takes a whole number at least 0"),
    ("validation", "x", "validation is 'x': it takes a whole number at least 0"),
    ("threads", "0", "threads is 0: it takes a whole number at least 1"),
    ("target", "-1", "target is -1.0: it takes a number at least 0 and at most 100"),
    ("target", "101", "target is 101.0: it takes a number at least 0 and at most 100"),
    ("target", "high", "target is 'high': it takes a number at least 0 and at most 100"),
    ("target", "nan", "target is nan: it takes a number at least 0 and at most 100"),
    ("engine", "gpu", "'--engine': 'gpu' is not one of 'auto', 'numba', 'torch'"),
    ("x", "y", "x is no parameter of step2: it takes seed, validation, dataset, data_dir, epochs, batch_size, lr"),
]


def refused(capsys, *arguments):
    """The exit code and the one line of an error."""
    with pytest.raises(SystemExit) as stopped:
        __main__.main(list(arguments))
    printed = capsys.readouterr().err.strip()  # click ends the line of a ^C
    assert printed.startswith("error: ")
    assert "\n" not in printed
    return stopped.value.code, printed.removeprefix("error: ")


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_a_bad_value(name, value, message, capsys, store):
    code, line = refused(capsys, "step2", f"--{name}", value)
    assert code == 2
    assert message in line
    assert store.search_runs(["0"]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step9"], "No such command 'step9'"),
        (["step2", "stray"], "unexpected extra argument"),
        (["predict"], "Missing option '--images'"),
        (["record", "--step", "step9"], "'step9' is not one of"),
        (["repeat", "--step", "step9"], "'step9' is not one of"),
        (["repeat", "--seeds", "0"], "seeds is 0: it takes a whole number at least 1"),
        (["repeat", "--jobs", "two"], "jobs is 'two': it takes auto, or a whole number at least 1"),
        (["tune", "--trials", "0"], "trials is 0: it takes a whole number at least 1"),
        (["tune", "--validation", "0"], "validation is 0: it takes a whole number at least 1"),
        (["tune", "--pruner", "best"], "'best' is not one of"),
        (["repeat", "--reuse", "maybe"], "'maybe' is not a valid boolean"),
        (
            ["all", "--validation", "100"],
            "validation is no parameter of all: it takes seed, reuse, experiment, ",
        ),
        (["compare", "--dataset", "/"], "dataset is '/': it takes auto, or the name of a dataset"),
        (["promote"], "Missing option '--version'"),
        (
            ["promote", "--version", "1", "--dataset", "letters"],
            "dataset is 'letters': it takes auto, mnist, digits, or",
        ),
        (["promote", "--version", "1", "--force", "maybe"], "'maybe' is not a valid boolean"),
    ],
)
def test_a_bad_command(arguments, message, capsys):
    code, line = refused(capsys, *arguments)
    assert code == 2
    assert message in line


def interrupted(*_):
    """Stand in for a training that Ctrl-C interrupts at once."""
    raise KeyboardInterrupt


def run_status(store):
    return [(entry.info.run_name, entry.info.status) for entry in store.search_runs(["0"])]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none(store, capsys):
    code, line = refused(capsys, "step2", "--device", "cuda")
    assert (code, line) == (2, "device is 'cuda': this machine has no CUDA device; it takes cpu or auto")


def test_a_password_in_the_stores_address_is_not_shown(store, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(SHORT_TIMEOUTS, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # not to wait in a test
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # where the command moves them to
    mlflow.set_tracking_uri("http://me:secret@127.0.0.1:9")
    code, line = refused(capsys, "step2")
    assert code == 1
    assert "MLFLOW_TRACKING_URI is 'http://127.0.0.1:9': the store there does not answer" in line
    assert "secret" not in line
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("me", "secret")
    with store_lock("registry"):
        assert not [file for file in tmp_path.rglob("*") if "secret" in file.name]


def test_a_damaged_file_fails_the_run(store, capsys, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in data.MNIST_SHA256:
        (raw / name).write_bytes(b"damaged")
    code, line = refused(capsys, "step2", "--dataset", "auto", "--data_dir", str(tmp_path))
    assert code == 1
    assert "train-images-idx3-ubyte is damaged: its SHA-256 is" in line
    assert run_status(store) == [("step2 seed 0", "FAILED")]


def test_too_little_memory(store, capsys, monkeypatch):
    monkeypatch.setattr(training.train, "init_state", lambda *_: torch.empty(2**50))
    code, line = refused(capsys, "step2", "--dataset", "digits")
    assert code == 1
    assert line.startswith("out of memory: ")
    assert line.endswith("in training, a smaller batch_size needs less")
    assert run_status(store) == [("step2 seed 0", "FAILED")]


def test_mnist_out_of_reach_fails_the_run(store, capsys, tmp_path, offline):
    code, line = refused(capsys, "step2", "--dataset", "mnist", "--data_dir", str(tmp_path))
    assert code == 1
    assert "MNIST is not in" in line
    assert run_status(store) == [("step2 seed 0", "FAILED")]


def test_a_folder_that_cannot_be_written_fails_the_run(store, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, line = refused(capsys, "step2", "--dataset", "mnist", "--data_dir", str(tmp_path / "file" / "data"))
    assert code == 2
    assert "data_dir is" in line
    assert "it takes a folder that can be written" in line
    assert run_status(store) == [("step2 seed 0", "FAILED")]


def test_a_slice_larger_than_the_training_set_fails_the_run(store, capsys):
    code, line = refused(capsys, "step2", "--dataset", "digits", "--validation", "1437")
    assert (code, line) == (2, "validation is 1437: it takes a whole number from 0 to 1436")
    assert run_status(store) == [("step2 seed 0", "FAILED")]


NOT_RESUMED = pytest.mark.fault(
    "a resume that makes no sense",
    "no run's id; a finished run, another step's, of another recipe or code, without a state, or being trained",
    "one line that says why; the run is left as it was",
)


@NOT_RESUMED
def test_a_run_that_cannot_be_resumed(store, capsys):
    assert refused(capsys, "step2", "--resume", "no-run")[0] == 2
    assert store.search_runs(["0"]) == []
    with runs.run("step3 seed 0", {"step": "step3"}) as other:
        pass
    code, line = refused(capsys, "step2", "--resume", other)
    assert code == 2
    assert line.endswith("it takes the id of an unfinished run of step2, and that is a run of step3")
    code, line = refused(capsys, "step3", "--resume", other)
    assert line.endswith("and that run is finished")
    store.update_run(other, "FAILED")
    code, line = refused(capsys, "step3", "--resume", other)
    assert line.endswith("and that run ended before it had logged 'run.seed'")


@NOT_RESUMED
def test_a_run_of_other_code_is_not_resumed(store, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training.train, "fit", interrupted)
        refused(capsys, "step2", "--dataset", "digits")
    (begun,) = store.search_runs(["0"])
    code, line = refused(capsys, "step2", "--resume", begun.info.run_id)
    assert (code, line) == (1, f"there is no saved state in {checkpoints() / begun.info.run_id}")
    code, line = refused(capsys, "step2", "--lr", "0.3", "--resume", begun.info.run_id)
    assert (code, line) == (2, "lr is 0.3: the run that is resumed has 0.01")
    code_digest = ours(begun.data.tags)["code.digest"]
    store.set_tag(begun.info.run_id, "drilldown.code.digest", "another")
    code, line = refused(capsys, "step2", "--resume", begun.info.run_id)
    assert code == 2
    assert "that run's code.digest is another, now it is" in line
    store.set_tag(begun.info.run_id, "drilldown.code.digest", code_digest)
    folder = checkpoints() / begun.info.run_id
    with training.checkpoint.lock(folder):
        (folder / "epoch-0001.pt").write_bytes(b"")
        code, line = refused(capsys, "step2", "--resume", begun.info.run_id)
    assert (code, line) == (2, f"resume is {begun.info.run_id!r}: that run is being trained by another process")
    after = store.get_run(begun.info.run_id)  # what was refused has not touched the run
    assert (after.info.status, ours(after.data.tags)["error"]) == ("KILLED", "KeyboardInterrupt")
    store.update_run(begun.info.run_id, "RUNNING")
    with FileLock(process.LIVENESS_FOLDER.absolute() / "another"):
        store.set_tag(begun.info.run_id, "drilldown.process", process.lock_name("another"))
        code, line = refused(capsys, "step2", "--resume", begun.info.run_id)
    assert code == 2
    assert line.endswith("and that run is being trained by another process")
    assert store.get_run(begun.info.run_id).info.status == "RUNNING"


def test_a_predict_that_can_read_nothing_is_a_failed_run(store, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.png").write_text("not a picture")
    monkeypatch.setattr(predict, "load", lambda _: (Brightest(), {}))
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["predict", "--images", str(tmp_path)])
    printed = capsys.readouterr().err
    assert stopped.value.code == 1
    assert "broken.png  left out: cannot identify image file" in printed
    assert "error: none of the files has a digit that could be read" in printed
    assert run_status(store) == [("predict", "FAILED")]


def test_a_change_of_champion_that_cannot_be_is_a_failed_run(store, capsys):
    store.create_registered_model("letters-cnn")
    code, line = refused(capsys, "promote", "--version", "3", "--model", "letters-cnn")
    assert (code, line) == (2, "version is '3': it takes a version of letters-cnn, which has none")
    code, line = refused(capsys, "rollback", "--model", "letters-cnn")
    assert (code, line) == (1, "letters-cnn has no version: a run that passes the gate registers one")
    code, line = refused(capsys, "promote", "--version", "1", "--model", "digits-cnn")
    assert (code, line) == (2, "model is 'digits-cnn': it takes a registered model, as letters-cnn")
    assert run_status(store) == [
        ("promote digits-cnn", "FAILED"), ("rollback letters-cnn", "FAILED"), ("promote letters-cnn", "FAILED"),
    ]  # fmt: skip


@pytest.fixture
def of_digits(store, tmp_path):
    """Two versions of digits-cnn, the second of them champion, and a champion of another project."""
    for name in ("digits-cnn", "houses"):
        store.create_registered_model(name)
        for _ in range(2):
            store.create_model_version(name, str(tmp_path))
        store.set_registered_model_alias(name, "champion", "2")


NO_CHAMPION = "mnist-cnn has no champion; digits-cnn has one: "


def test_predict_without_a_champion_says_which_there_is_and_how_to_get_the_other(of_digits, capsys):
    code, line = refused(capsys, "predict", "--images", str(ROOT / "docs" / "digits"))
    assert code == 2
    assert line.startswith(f"model is 'models:/mnist-cnn@champion': {NO_CHAMPION}--model models:/digits-cnn@champion;")
    assert line.endswith("python -m drilldown step4 --dataset mnist")


@pytest.fixture
def served(monkeypatch):
    """The models that were to be served, and where."""
    calls = []
    monkeypatch.setattr(serving, "create_app", lambda uri: uri)
    monkeypatch.setattr(http, "serve", lambda uri, listening: calls.append((uri, *listening.getsockname())))
    return calls


def test_serve_without_a_champion_says_which_there_is_and_how_to_get_the_other(of_digits, capsys, served):
    code, line = refused(capsys, "serve")
    assert (code, served) == (1, [])
    assert line.startswith(NO_CHAMPION)
    assert "drilldown serve --model digits-cnn; to train one: " in line
    assert line.endswith("python -m drilldown step4 --dataset mnist")


def test_serve_says_how_to_ask_and_serves_on_the_loopback(of_digits, capsys, served):
    port = free_port()
    __main__.main(["serve", "--model", "digits-cnn", "--port", str(port)])
    printed = capsys.readouterr().out
    for path in ("invocations", "read"):
        assert f"curl --silent http://127.0.0.1:{port}/{path} " in printed
    assert served == [("models:/digits-cnn@champion", "127.0.0.1", port)]


def test_no_data_is_loaded_before_there_is_a_version_to_change_to(of_digits, store, capsys, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_: pytest.fail("it loads data"))
    missing = "model is 'mnist-cnn': it takes a registered model, as digits-cnn"
    assert refused(capsys, "promote", "--version", "2") == (2, missing)
    assert refused(capsys, "rollback") == (2, missing)
    for name in ("digits", "houses"):  # the dataset instead of the model, and a model of another project
        refusal = 2, f"model is {name!r}: it takes a registered model, as digits-cnn"
        assert refused(capsys, "promote", "--version", "1", "--model", name) == refusal
        assert refused(capsys, "rollback", "--model", name, "--dataset", "digits") == refusal
    code, line = refused(capsys, "promote", "--version", "3", "--model", "digits-cnn", "--dataset", "digits")
    assert (code, line) == (2, "version is '3': it takes a version of digits-cnn, which has 1, 2")
    for name in ("digits-cnn", "houses"):
        assert str(store.get_model_version_by_alias(name, "champion").version) == "2"


def test_a_command_says_that_the_store_does_not_answer(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri(f"http://127.0.0.1:{free_port()}")
    ask = command(lambda: registry.dataset_location("digits-cnn"), connect=lambda: None)
    with pytest.raises(StoreError, match="API request to http://127.0.0.1"):
        ask()


def test_nothing_to_compare_is_a_failed_run(store, capsys):
    code, line = refused(capsys, "compare", "--dataset", "mnist")
    assert (code, line) == (
        1,
        "dataset is 'mnist': no finished run to compare in the experiment Default; train a step, or look into another "
        "experiment: all, Default",
    )
    code, line = refused(capsys, "compare", "--dataset", "it's/My Letters.npz")
    assert line.startswith("dataset is 'my-letters': no finished run to compare in the experiment Default")
    assert run_status(store) == [("compare", "FAILED")] * 2


def test_nothing_to_compare_in_an_experiment_that_is_new(store, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "fresh")
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    _, line = refused(capsys, "compare")
    assert "no finished run to compare in the experiment fresh; train a step, or look into another" in line
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)


@pytest.mark.parametrize("command", ["compare", "all", "repeat", "status", "record --step step2"])
def test_a_missing_experiment_is_refused_before_a_run_is_opened(command, store, capsys):
    code, line = refused(capsys, *command.split(), "--experiment", "nowhere")
    assert (code, line) == (2, "experiment is 'nowhere': it takes all, or an experiment of this store: 'Default'")
    assert store.search_runs(["0"]) == []


@pytest.fixture
def opened(store, monkeypatch):
    """The id of a run that `mlflow run . -e step2` opened for the command to come."""
    run = store.create_run("0", run_name="random-name-1", tags={"mlflow.project.entryPoint": "step2"})
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    return run.info.run_id


def name_and_tags(store, run_id):
    run = store.get_run(run_id)
    return run.info.run_name, ours(run.data.tags)


def test_a_run_that_fails_before_it_has_a_name_gets_one(opened, store, capsys):
    refused(capsys, "step2", "--epochs", "abc")
    name, tags = name_and_tags(store, opened)
    assert (name, tags["kind"]) == ("step2", "train")
    assert tags["error"].startswith("epochs is 'abc': it takes a whole number")


def test_a_step_whose_network_cannot_be_built_is_a_run_with_a_name_and_its_error(opened, store, monkeypatch):
    def broken():
        raise ZeroDivisionError("3 channels / 0")

    step = replace(load_step("step2"), network=broken)
    monkeypatch.setattr(training, "load_step", lambda _: step)
    with pytest.raises(ZeroDivisionError):  # its author needs the traceback
        __main__.main(["step2", "--dataset", "digits"])
    name, tags = name_and_tags(store, opened)
    assert (name, tags["kind"], tags["error"]) == ("step2", "train", "ZeroDivisionError: 3 channels / 0")


def test_a_run_that_fails_later_keeps_its_name(opened, store, capsys, monkeypatch):
    monkeypatch.setattr(training.train, "fit", interrupted)
    refused(capsys, "step2", "--dataset", "digits", "--seed", "5")
    name, tags = name_and_tags(store, opened)
    assert (name, tags["kind"], tags["error"]) == ("step2 seed 5", "train", "KeyboardInterrupt")


def test_an_interrupted_run_is_killed(store, capsys, monkeypatch):
    monkeypatch.setattr(training.train, "fit", interrupted)
    code, line = refused(capsys, "step2", "--dataset", "digits")
    assert (code, line) == (130, "interrupted")
    assert run_status(store) == [("step2 seed 0", "KILLED")]


def test_the_help_names_every_parameter(capsys):
    cli.cli.main(["step4", "--help"], standalone_mode=False)
    shown = capsys.readouterr().out
    for option in cli.cli.commands["step4"].params:
        assert f"--{option.name}" in shown


@pytest.mark.parametrize("arguments", [["--help"], ["step4", "--help"], ["step4", "--epochs", "abc"], ["step9"]])
def test_help_and_a_refused_parameter_import_nothing_heavy(arguments):
    code = f"""
import sys
from drilldown import __main__
try:
    __main__.main({arguments})
except SystemExit:
    pass
print(*sorted({{"torch", "mlflow", "numpy", "numba", "pandas", "matplotlib"}} & set(sys.modules)), file=sys.stderr)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(ROOT / "src")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""


def test_the_engine_that_auto_falls_back_to_is_said_with_the_reason(store, capsys, monkeypatch):
    monkeypatch.setattr(training.train, "fit", interrupted)
    with pytest.raises(SystemExit):
        __main__.main(["step1", "--dataset", "digits"])
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("engine: torch, because Conv2d(1, 32, kernel_size=(3, 3)")
    (run,) = store.search_runs(["0"])
    assert run.data.params["run.engine"] == "torch"


def test_an_engine_that_the_network_cannot_use_is_refused(store, capsys):
    code, line = refused(capsys, "step1", "--engine", "numba", "--dataset", "digits")
    assert code == 2
    assert line.startswith("engine is 'numba': it takes auto or torch here, because Conv2d(1, 32,")
    assert store.search_runs(["0"]) == []


def test_an_engine_that_the_network_cannot_use_is_refused_for_all_seeds_at_once(store, capsys):
    code, line = refused(capsys, "repeat", "--step", "step1", "--engine", "numba", "--dataset", "digits")
    assert code == 2
    assert line.startswith("engine is 'numba': it takes auto or torch here, because Conv2d(1, 32,")
    assert run_status(store) == [("repeat step1", "FAILED")]


@pytest.mark.slow
def test_a_run_is_resumed_whatever_experiment_it_is_in(store, capsys, monkeypatch):
    with interrupted_after_an_epoch():
        assert refused(capsys, "step4", "--dataset", "digits", "--epochs", "2", "--engine", "torch")[0] == 130
    (begun,) = store.search_runs(["0"])
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    __main__.main(["step4", "--resume", begun.info.run_id])
    assert store.get_run(begun.info.run_id).info.status == "FINISHED"
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
