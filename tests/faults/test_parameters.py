"""Every parameter of every command, with values that it refuses and values at its limits."""

import contextlib
import io
import math
from dataclasses import replace

import click
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from drilldown import cli
from drilldown.choices import dataset_name
from drilldown.options import Number
from drilldown.registry.champion import get_champion, set_champion
from drilldown.tracking.tags import ours
from tests.support.networks import SMALL_RECIPE, train_small
from tests.test_cli import refused, run_status

LONG = "a" * 100_000
LINES = ["two\nlines", "two\rlines", "two\u2028lines", "\x1b[31mred", "a\ttab", "\x00", "\x7f", "\udcff"]
HOSTILE = [
    *LINES,
    LONG,
    "'",
    '"',
    "''",
    "; touch x",
    "$(touch x)",
    "`touch x`",
    "' or 1=1 --",
    "../../etc",
    "é😀",
    "-",
    "--",
]
NOT_NUMBERS = [*HOSTILE, " ", "\u3000", "0x10", "1e400", "-1e400", "9" * 5000, "nan", "NaN", "-nan", "inf", "-Infinity",
              "true", "None", "1,000", "1.2.3", "1__0", "½", "³", "1j", "[1]", "1 2", "--1"]  # fmt: skip
NOT_WHOLE_NUMBERS = [*NOT_NUMBERS, "1.0", "1e0", "-0.0", "1e3", str(10**30), "9" * 4000, "-" + "9" * 4000]

# The type, minimum and maximum of each number, and whether it may be empty; independent of the code that is tested.
NUMBERS = {
    "seed": (int, 0, 2**32 - 1, False),
    "validation": (int, 0, 999_999, False),
    "epochs": (int, 1, 9_999, True),
    "batch_size": (int, 1, 60_000, True),
    "lr": (float, math.ulp(0), 1.7976931348623157e308, True),
    "threads": (int, 1, 1024, True),
    "target": (float, 0, 100, True),
    "seeds": (int, 1, 9_999, False),
    "jobs": (int, 1, 9_999, False),
    "register": (int, 0, 2**32 - 1, True),
    "port": (int, 1, 65_535, False),
    "gpus": (int, 0, 1, False),
    "trials": (int, 1, 9_999, False),
    "seeds_per_trial": (int, 1, 1_000, False),
    "max_parameters": (int, 1, 10**12, True),
    "confirm": (int, 0, 100, False),
    "confirm_seeds": (int, 2, 100, False),
}
OF_TUNE = {  # it measures on no test images, and adds to the seed
    "validation": (int, 1, 999_999, True),
    "seed": (int, 0, 2**32 - 2_001, False),
}
REQUIRED = {
    "predict": {"images": "x"},
    "promote": {"version": "1"},
    "record": {"step": "step1"},
    "register": {"run": "x"},
}
OPTIONS = [(name, option.name) for name, command in cli.cli.commands.items() for option in command.params]


def bounds(command: str, name: str) -> tuple[type, float, float, bool]:
    """The entry of NUMBERS for an option."""
    return OF_TUNE[name] if command == "tune" and name in OF_TUNE else NUMBERS[name]


def of_type(kind: type) -> list[tuple[str, str]]:
    """The options of this type, as (command, option)."""
    found = {(name, each.name): each for name, command in cli.cli.commands.items() for each in command.params}
    return [place for place, option in found.items() if isinstance(option.type, kind)]


def parse(command: str, name: str, value: str) -> tuple[int, object]:
    """The exit code, with the value that the command would get, or with the error line."""
    taken, printed = {}, io.StringIO()
    arguments = REQUIRED.get(command, {}) | {name: value}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(printed):
        patch.setattr(cli.cli.commands[command], "callback", lambda **values: taken.update(values))
        try:
            cli.main([command, *(f"--{name}={value}" for name, value in arguments.items())])
        except SystemExit as stopped:
            return stopped.code, printed.getvalue().removesuffix("\n")
    return 0, taken[name]


def assert_refused(command: str, name: str, value: str) -> None:
    code, line = parse(command, name, value)
    assert code == 2, f"{name}={value[:50]!r} is taken as {line!r}"
    assert line.startswith((f"error: {name} is ", f"error: Invalid value for '--{name}': "))
    assert line.isprintable(), "it is one line without control characters"
    assert len(line) < 300


fault = pytest.mark.fault
NAMED = "one line that names the parameter; exit code 2"
NAMED_NO_RUN = "one line that names the parameter; no run; exit code 2"
NAMED_FAILED = "one line that names the parameter; run FAILED; exit code 2"


@fault("invalid number", "not a number, out of bounds; every command and option", NAMED)
@pytest.mark.parametrize(("command", "name"), of_type(Number))
def test_invalid_numbers(command, name, record_property):
    kind, low, high, empty = bounds(command, name)
    values = [*(NOT_WHOLE_NUMBERS if kind is int else NOT_NUMBERS), "-1", "-5e-324", *([] if empty else [""])]
    values += [str(high + 1)] if kind is int else []
    values += ["0"] if low > 0 else []
    for value in values:
        assert_refused(command, name, value)
    record_property("times", len(values))


@fault("invalid choice", "unknown words; every command and option", NAMED)
@pytest.mark.parametrize(("command", "name"), of_type(click.Choice) + of_type(click.types.BoolParamType))
def test_invalid_choices(command, name, record_property):
    values = [
        *HOSTILE,
        "",
        " ",
        "MNIST",
        "Step4",
        "mnist ",
        "step",
        "step0",
        "cuda:0",
        "2",
        "-1",
        "maybe",
        "nan",
        "None",
    ]
    for value in values:
        assert_refused(command, name, value)
    record_property("times", len(values))


@fault("invalid text", "control characters, blanks, 100,000 characters; every command and option", NAMED)
@pytest.mark.parametrize(("command", "name"), of_type(click.types.StringParamType))
def test_invalid_texts(command, name, record_property):
    values = [*LINES, LONG, "é" * 1001, " ", "\u3000"]
    can_be_empty = {"data_dir", "resume", "experiment", "labels", "old", "new", "storage", "cluster"}
    can_be_empty |= {"dataset"} if command in ("promote", "rollback", "register", "work") else set()
    values += [] if name in can_be_empty else [""]
    for value in values:
        assert_refused(command, name, value)
    record_property("times", len(values))


@pytest.mark.parametrize(
    ("command", "name", "value", "taken"),
    [
        ("step1", "seed", "4294967295", 4294967295),
        ("step2", "seed", "00", 0),
        ("step3", "seed", "1_000", 1000),  # as Python writes it
        ("step4", "seed", "１２", 12),
        ("all", "seed", " +5 ", 5),
        ("step1", "target", "0", 0.0),
        ("step1", "target", "100", 100.0),
        ("repeat", "target", "5e-324", 5e-324),
        ("all", "target", "", None),
        ("step1", "lr", "5e-324", 5e-324),
        ("step1", "lr", "1e308", 1e308),
        ("all", "lr", "", None),
        ("step1", "epochs", "9999", 9999),
        ("record", "epochs", "", None),
        ("step1", "batch_size", "60000", 60_000),
        ("step1", "threads", "1024", 1024),
        ("step1", "validation", "999999", 999_999),
        ("repeat", "seeds", "9999", 9999),
        ("repeat", "jobs", "1", 1),
        ("repeat", "jobs", "auto", None),
        ("repeat", "register", "", None),
        ("repeat", "register", "7", 7),
        ("repeat", "reuse", "OFF", False),
        ("tune", "validation", "", None),
        ("tune", "max_parameters", "7999", 7999),
        ("tune", "confirm", "0", 0),
        pytest.param("promote", "force", "yes", True, marks=pytest.mark.long),
        pytest.param("promote", "version", "9" * 30, "9" * 30, marks=pytest.mark.long),
        pytest.param(
            "promote",
            "why",
            'it\'s "quoted" $HOME; `x` – é😀',
            'it\'s "quoted" $HOME; `x` – é😀',
            marks=pytest.mark.long,
        ),
        ("predict", "images", "a" * 1000, "a" * 1000),
        ("step1", "data_dir", "", ""),
        ("step1", "resume", "", ""),
        ("compare", "experiment", "", ""),
    ],
)
def test_values_at_the_limits(command, name, value, taken):
    assert parse(command, name, value) == (0, taken)


def test_smallest_learning_rate_trains(digits):
    state = train_small(digits, replace(SMALL_RECIPE, lr=5e-324, epochs=1))
    assert math.isfinite(state.history[0].train_loss)


anything = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=40),  # surrogates, too
    st.text("0123456789+-_.eE, \u0661\uff11", max_size=12),
    st.integers().map(str),
    st.floats().map(repr),
)


@fault("arbitrary text", "property-based; every command and option", "accepted within bounds, or refused in one line")
@pytest.mark.parametrize(("command", "name"), OPTIONS)
@settings(deadline=None, derandomize=True, database=None, max_examples=30)
@given(value=anything)
@example(value="")
@example(value="9" * 4000)
def test_arbitrary_text(command, name, value):
    code, taken = parse(command, name, value)
    if code:
        assert_refused(command, name, value)
    elif name in NUMBERS:
        kind, low, high, empty = bounds(command, name)
        assert (taken is None and value == "" and empty) or (type(taken) is kind and low <= taken <= high)
    elif (command, name) in of_type(click.types.BoolParamType):
        assert type(taken) is bool
    else:
        assert taken == (dataset_name(value) if (command, name) == ("compare", "dataset") else value)
        assert not value or not (value.isspace() or "\n" in value)


def assert_refused_in_the_store(store, capsys, name: str, *arguments: str) -> None:
    """The command itself refuses the value; it may have started a run."""
    code, line = refused(capsys, *arguments)
    assert code == 2
    assert line.startswith(f"{name} is ")
    assert line.isprintable()
    assert {status for _, status in run_status(store)} <= {"FAILED"}


@fault("unknown run to resume", "SQL quotes, paths, names", NAMED_NO_RUN)
@pytest.mark.parametrize(
    "value",
    [
        "' or 1=1 --",
        '" or ""="',
        "../../etc",
        "/etc",
        "..",
        ".",
        "%",
        "*",
        "0" * 32,
        "a" * 300,
        "`touch x`",
        "é",
        "None",
    ],
)
def test_unknown_run(value, store, capsys, tmp_path):
    assert_refused_in_the_store(store, capsys, "resume", "step2", "--dataset", "digits", "--resume", value)
    assert store.search_runs(["0"]) == []
    assert not (tmp_path / "checkpoints").exists()


@fault("unknown version", "next to an existing one", NAMED_FAILED)
@pytest.mark.parametrize(
    "value",
    [
        "0",
        "2",
        "-1",
        "01",
        "１",
        "1.0",
        "1 ",
        "1e0",
        "latest",
        "champion",
        "' or 1=1 --",
        "1' --",
        "9" * 30,
        "é",
        "nan",
    ],
)
def test_unknown_version(value, store, capsys, tmp_path):
    store.create_registered_model("digits-cnn")
    store.create_model_version("digits-cnn", tmp_path.as_uri())
    assert_refused_in_the_store(
        store, capsys, "version", "promote", "--version", value, "--model", "digits-cnn", "--why", "' or 1=1 --"
    )
    assert store.get_registered_model("digits-cnn").aliases == {}


@pytest.fixture
def image(tmp_path):
    pixels = np.zeros((28, 28), np.uint8)
    pixels[5:20, 12:15] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


@fault("missing images", "paths that do not exist, impossible paths", NAMED_NO_RUN)
@pytest.mark.parametrize(
    "value",
    ["nowhere", "nowhere/", "../../nowhere", "empty", "~/nowhere-at-all", "~no-such-user/x", "a" * 300, "a/" * 500,
     "*.png", "http://127.0.0.1:9/x.png", "file:///nowhere.png", "; touch x", "$(touch x)", "'", "é😀", "image.png/x"],
)  # fmt: skip
def test_missing_images(value, image, store, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused_in_the_store(store, capsys, "images", "predict", "--images", value)
    assert store.search_runs(["0"]) == []
    assert {file.name for file in tmp_path.iterdir()} <= {"image.png", "empty", "checkpoints"} | {
        file.name for file in tmp_path.glob("mlflow.db*")
    }


@fault("unknown model", "invalid URIs of many kinds", NAMED_FAILED)
@pytest.mark.parametrize(
    "value",
    ["models:/", "models:/x@", "models:/@x", "models:/mnist-cnn@nobody", "models:/mnist-cnn@champion", "mnist-cnn",
     "models:/mnist-cnn/99", "models:/mnist-cnn/1/2/3", "models:/mnist-cnn", "models:/mnist-cnn/Production",
     "models:/' or 1=1 --/1", "models:/a'b@champion", f"models:/m-{'0' * 32}", f"models:/mnist-cnn/{'9' * 30}",
     "runs:/", "runs:/nope/model", f"runs:/{'0' * 32}/model", "http://127.0.0.1:9/model", "https://", "s3://nobody/x",
     "abc://x", "nowhere/model", "/dev/null", "file:///nowhere", "$(touch x)", "'", "é", "~"],
)  # fmt: skip
def test_unknown_model(value, image, store, capsys):
    assert_refused_in_the_store(store, capsys, "model", "predict", "--images", image, "--model", value)
    assert run_status(store) == [("predict", "FAILED")]


@fault("invalid data folder", "a file, a path inside a file, too long, an unknown user", NAMED_FAILED)
@pytest.mark.parametrize("value", ["file", "file/x", "a" * 300, "/dev/null", "~no-such-user/x"])
@pytest.mark.parametrize(
    "arguments",
    [("step1", "--dataset", "mnist"), ("repeat", "--dataset", "mnist"), ("all", "--dataset", "mnist"),
     ("promote", "--version", "1"), ("rollback",)],
)  # fmt: skip
def test_invalid_data_folder(arguments, value, store, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    store.create_registered_model("mnist-cnn")
    for version in ("1", "2"):  # that rollback has a champion to go back to
        store.create_model_version("mnist-cnn", "file:///nowhere")
        set_champion("mnist-cnn", get_champion("mnist-cnn"), version, "promotion", "a test")
    assert_refused_in_the_store(store, capsys, "data_dir", *arguments, "--data_dir", value)


@pytest.mark.slow
@fault("shell characters", "`mlflow run -P`", "passed on unchanged; nothing is executed; run FAILED")
@pytest.mark.parametrize(
    ("entry_point", "name", "parameters"),
    [
        ("predict", "images", {"images": '\'; touch x; "$(touch x)" `touch x` & touch x | touch x > x #'}),
        pytest.param(
            "main", "resume", {"resume": "' or 1=1 --; touch x", "data_dir": "$(touch x)"}, marks=pytest.mark.long
        ),
        pytest.param(
            "promote",
            "model",
            {"model": 'it\'s "$HOME"; touch x; x-cnn', "version": "1; touch x", "why": "`touch x`"},
            marks=pytest.mark.long,
        ),
        pytest.param(
            "rollback", "why", {"why": 'it\'s "$HOME"\ntouch x', "model": "digits-cnn"}, marks=pytest.mark.long
        ),
    ],
)
def test_shell_characters(entry_point, name, parameters, project):
    done = project.mlflow_run(entry_point, **parameters)
    assert done.returncode != 0
    message = f"{name} is {parameters[name]!r}: it takes "
    assert f"error: {message}" in done.stderr
    assert "Traceback" not in done.stderr
    latest = project.runs()[0]
    assert latest.info.status == "FAILED"
    assert ours(latest.data.tags)["error"].startswith(message)
    assert not (project.folder / "x").exists()
    assert project.client().search_registered_models() == []
