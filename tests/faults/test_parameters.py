"""Every parameter of every command, given what it does not take, or only just takes."""

import contextlib
import io
import math
from dataclasses import replace

import click
import numpy as np
import pytest
from conftest import SMALL_RECIPE, train_small
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_run import refused, run_status

from src import commands, run
from src.options import Number

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
NO_NUMBERS = [*HOSTILE, " ", "\u3000", "0x10", "1e400", "-1e400", "9" * 5000, "nan", "NaN", "-nan", "inf", "-Infinity",
              "true", "None", "1,000", "1.2.3", "1__0", "½", "³", "1j", "[1]", "1 2", "--1"]  # fmt: skip
NO_WHOLE_NUMBERS = [*NO_NUMBERS, "1.0", "1e0", "-0.0", "1e3", str(10**30), "9" * 4000, "-" + "9" * 4000]

# What each number takes, told once more: whether whole, at least (or, of lr, above), at most, whether it may be empty.
NUMBERS = {
    "seed": (int, 0, 2**32 - 1, False),
    "validation": (int, 0, 59_999, False),
    "epochs": (int, 1, 9_999, True),
    "batch_size": (int, 1, 60_000, True),
    "lr": (float, math.ulp(0), 1.7976931348623157e308, True),
    "threads": (int, 1, 1024, True),
    "target": (float, 0, 100, True),
    "seeds": (int, 1, 9_999, False),
    "jobs": (int, 1, 9_999, False),
}
REQUIRED = {"predict": {"images": "x"}, "promote": {"version": "1"}, "record": {"step": "step1"}}
OPTIONS = [(name, option.name) for name, command in commands.cli.commands.items() for option in command.params]


def of_type(kind: type) -> list[tuple[str, str]]:
    """The options of all commands that are of a type, as (command, option)."""
    found = {(name, each.name): each for name, command in commands.cli.commands.items() for each in command.params}
    return [place for place, option in found.items() if isinstance(option.type, kind)]


def parse(command: str, name: str, value: str) -> tuple[int, object]:
    """The exit code, and what the command would be called with, or else the line that it is refused with."""
    taken, printed = {}, io.StringIO()
    given = REQUIRED.get(command, {}) | {name: value}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(printed):
        patch.setattr(commands.cli.commands[command], "callback", lambda **values: taken.update(values))
        try:
            run.main([command, *(f"--{name}={value}" for name, value in given.items())])
        except SystemExit as stopped:
            return stopped.code, printed.getvalue().removesuffix("\n")
    return 0, taken[name]


def assert_refused(command: str, name: str, value: str) -> None:
    code, line = parse(command, name, value)
    assert code == 2, f"{name}={value[:50]!r} is taken as {line!r}"
    assert line.startswith((f"error: {name} is ", f"error: Invalid value for '--{name}': "))
    assert line.isprintable(), "it is one line, and nothing that a terminal obeys"
    assert len(line) < 300


fault = pytest.mark.fault


@fault("a number that is none, or out of bounds", "every command and option", "one line that names it; exit code 2")
@pytest.mark.parametrize(("command", "name"), of_type(Number))
def test_bad_numbers(command, name, record_property):
    kind, low, high, empty = NUMBERS[name]
    values = [*(NO_WHOLE_NUMBERS if kind is int else NO_NUMBERS), "-1", "-5e-324", *([] if empty else [""])]
    values += [str(high + 1)] if kind is int else []
    values += ["0"] if low > 0 else []
    for value in values:
        assert_refused(command, name, value)
    record_property("times", len(values))


@fault("a word that is none of those it takes", "every command and option", "one line that names it; exit code 2")
@pytest.mark.parametrize(("command", "name"), of_type(click.Choice) + of_type(click.types.BoolParamType))
def test_bad_words(command, name, record_property):
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


@fault(
    "a text that is no line, or 100,000 characters", "every command and option", "one line that names it; exit code 2"
)
@pytest.mark.parametrize(("command", "name"), of_type(click.types.StringParamType))
def test_bad_texts(command, name, record_property):
    values = [*LINES, LONG, "é" * 1001, " ", "\u3000"]
    values += [] if name in ("data_dir", "resume") else [""]
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
        ("step1", "validation", "59999", 59_999),
        ("repeat", "seeds", "9999", 9999),
        ("repeat", "jobs", "1", 1),
        ("repeat", "reuse", "OFF", False),
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
    ],
)
def test_what_is_only_just_taken(command, name, value, taken):
    assert parse(command, name, value) == (0, taken)


def test_the_smallest_learning_rate_trains(digits):
    training = train_small(digits, replace(SMALL_RECIPE, lr=5e-324, epochs=1))
    assert math.isfinite(training.history[0]["train_loss"])


anything = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=40),  # halves of characters too
    st.text("0123456789+-_.eE, \u0661\uff11", max_size=12),
    st.integers().map(str),
    st.floats().map(repr),
)


@fault("any text at all", "property-based, every command and option", "taken within its bounds, or refused in one line")
@pytest.mark.parametrize(("command", "name"), OPTIONS)
@settings(deadline=None, derandomize=True, database=None, max_examples=30)
@given(value=anything)
@example(value="")
@example(value="9" * 4000)
def test_any_text(command, name, value):
    code, taken = parse(command, name, value)
    if code:
        assert_refused(command, name, value)
    elif name in NUMBERS:
        kind, low, high, empty = NUMBERS[name]
        assert (taken is None and value == "" and empty) or (type(taken) is kind and low <= taken <= high)
    elif name in ("reuse", "force"):
        assert type(taken) is bool
    else:
        assert taken == value
        assert not value or not (value.isspace() or "\n" in value)


def assert_refused_in_the_store(store, capsys, name: str, *arguments: str) -> None:
    """By its own command this time: it may have begun a run."""
    code, line = refused(capsys, *arguments)
    assert code == 2
    assert line.startswith(f"{name} is ")
    assert line.isprintable()
    assert {status for _, status in run_status(store)} <= {"FAILED"}


@fault(
    "a run to resume that there is not", "quotes for SQL, paths, names", "one line that names it; no run; exit code 2"
)
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
def test_resume(value, store, capsys, tmp_path):
    assert_refused_in_the_store(store, capsys, "resume", "step2", "--dataset", "digits", "--resume", value)
    assert store.search_runs(["0"]) == []
    assert not (tmp_path / "checkpoints").exists()


@fault("a version that there is not", "beside one that there is", "one line that names it; the run FAILED; exit code 2")
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
def test_version(value, store, capsys, tmp_path):
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


@fault(
    "images that there are not", "no such path, or none that could be", "one line that names it; no run; exit code 2"
)
@pytest.mark.parametrize(
    "value",
    ["nowhere", "nowhere/", "../../nowhere", "empty", "~/nowhere-at-all", "~no-such-user/x", "a" * 300, "a/" * 500,
     "*.png", "http://127.0.0.1:9/x.png", "file:///nowhere.png", "; touch x", "$(touch x)", "'", "é😀", "image.png/x"],
)  # fmt: skip
def test_images(value, image, store, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused_in_the_store(store, capsys, "images", "predict", "--images", value)
    assert store.search_runs(["0"]) == []
    assert {file.name for file in tmp_path.iterdir()} <= {"image.png", "empty", "checkpoints"} | {
        file.name for file in tmp_path.glob("mlflow.db*")
    }


@fault("a model that there is not", "URIs of every bad kind", "one line that names it; the run FAILED")
@pytest.mark.parametrize(
    "value",
    ["models:/", "models:/x@", "models:/@x", "models:/mnist-cnn@nobody", "models:/mnist-cnn@champion", "mnist-cnn",
     "models:/mnist-cnn/99", "models:/mnist-cnn/1/2/3", "models:/mnist-cnn", "models:/mnist-cnn/Production",
     "models:/' or 1=1 --/1", "models:/a'b@champion", f"models:/m-{'0' * 32}", f"models:/mnist-cnn/{'9' * 30}",
     "runs:/", "runs:/nope/model", f"runs:/{'0' * 32}/model", "http://127.0.0.1:9/model", "https://", "s3://nobody/x",
     "abc://x", "nowhere/model", "/dev/null", "file:///nowhere", "$(touch x)", "'", "é", "~"],
)  # fmt: skip
def test_model(value, image, store, capsys):
    assert_refused_in_the_store(store, capsys, "model", "predict", "--images", image, "--model", value)
    assert run_status(store) == [("predict", "FAILED")]


@fault(
    "a folder for data that cannot be one", "a file, inside a file, too long", "one line that names it; the run FAILED"
)
@pytest.mark.parametrize("value", ["file", "file/x", "a" * 300, "/dev/null", "~no-such-user/x"])
@pytest.mark.parametrize(
    "arguments",
    [("step1", "--dataset", "mnist"), ("repeat", "--dataset", "mnist"), ("all", "--dataset", "mnist"),
     ("promote", "--version", "1"), ("rollback",)],
)  # fmt: skip
def test_data_dir(arguments, value, store, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused_in_the_store(store, capsys, "data_dir", *arguments, "--data_dir", value)


@pytest.mark.slow
@fault("characters that a shell obeys", "`mlflow run -P`", "arrives as it is; nothing is touched; the run FAILED")
@pytest.mark.parametrize(
    ("entry_point", "name", "parameters"),
    [
        ("predict", "images", {"images": '\'; touch x; "$(touch x)" `touch x` & touch x | touch x > x #'}),
        pytest.param(
            "main", "resume", {"resume": "' or 1=1 --; touch x", "data_dir": "$(touch x)"}, marks=pytest.mark.long
        ),
        pytest.param(
            "promote",
            "version",
            {"version": 'it\'s "$HOME"; touch x', "model": "digits-cnn", "why": "`touch x`"},
            marks=pytest.mark.long,
        ),
        pytest.param(
            "rollback", "why", {"why": 'it\'s "$HOME"\ntouch x', "model": "digits-cnn"}, marks=pytest.mark.long
        ),
    ],
)
def test_a_shell(entry_point, name, parameters, project):
    done = project.mlflow_run(entry_point, **parameters)
    assert done.returncode != 0
    message = f"{name} is {parameters[name]!r}: it takes "
    assert f"error: {message}" in done.stderr
    assert "Traceback" not in done.stderr
    latest = project.runs()[0]
    assert latest.info.status == "FAILED"
    assert latest.data.tags["error"].startswith(message)
    assert not (project.folder / "x").exists()
    assert project.client().search_registered_models() == []
