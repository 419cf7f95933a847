"""The progress of several trainings: a bar on a terminal, elsewhere a line now and then."""

import io

import pytest

from drilldown.experiments import progress
from drilldown.experiments.progress import Progress

EPOCHS = {"step4 seed 0": 3, "step4 seed 1": 3}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def report(shown):
    """Two trainings at a time: one runs to its end, the other dies after its first epoch."""
    for name in EPOCHS:
        shown.epoch(name, 0)
    shown.epoch("step4 seed 0", 1)
    shown.epoch("step4 seed 1", 1)
    shown.epoch("step4 seed 0", 2)
    shown.end("step4 seed 1")
    shown.epoch("step4 seed 0", 3)
    shown.end("step4 seed 0")


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(EPOCHS) as shown:
        report(shown)
    states = terminal.getvalue().split("\r")
    assert any("3/6" in state and "step4 seed 0: 2/3, step4 seed 1: 1/3" in state for state in states)
    assert any("5/6" in state for state in states)  # what the dead one has not trained counts as done
    assert "6/6" in states[-1]
    assert "seed" not in states[-1]


def test_a_line_now_and_then_elsewhere(monkeypatch, capsys):
    with Progress(EPOCHS) as shown:
        report(shown)
    assert capsys.readouterr().err == ""  # it took no minute
    monkeypatch.setattr(progress, "INTERVAL", 0)
    with Progress(EPOCHS) as shown:
        report(shown)
    assert capsys.readouterr().err.splitlines()[3:5] == [
        "2 of 6 epochs: step4 seed 0: 1/3, step4 seed 1: 1/3",
        "3 of 6 epochs: step4 seed 0: 2/3, step4 seed 1: 1/3",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_to_train_shows_nothing(terminal, monkeypatch):
    error = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", error)
    with Progress({}):
        pass
    assert error.getvalue() == ""
