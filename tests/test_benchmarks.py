"""The benchmarks' arithmetic, and that the loops they compare learn; no time is tested."""

import copy
import json
import statistics

import pytest
import torch
from click.testing import CliRunner

from benchmarks import __main__, epoch, notebook, overhead, search, serving, target
from drilldown.learning import data
from drilldown.steps import ROOT, load_step


@pytest.mark.parametrize(
    ("accuracies", "first"),
    [
        ([99.0, 99.4, 99.5], 2),
        ([99.4, 99.4], 1),
        ([99.5, 99.3, 99.4], 3),
        ([99.5, 99.5, 99.39], None),
    ],
)
def test_epoch_from_which_the_target_holds(accuracies, first):
    assert target.holds_from(accuracies, 99.4) == first


def test_study_network_has_the_published_number_of_parameters():
    assert sum(parameter.numel() for parameter in notebook.StudyNetwork().parameters()) == 9_300


def test_number_of_operations():
    """Multiply-adds of each convolution, twice (multiply, add), forward, and backward for weights and input."""
    sizes = [  # output side, kernel, channels in, channels out
        (26, 3, 1, 4), (24, 3, 4, 8), (24, 1, 8, 16), (10, 3, 16, 16), (10, 1, 16, 16), (8, 3, 16, 16), (6, 3, 16, 16),
        (4, 3, 16, 10), (1, 1, 10, 10),
    ]  # fmt: skip
    products = [side**2 * kernel**2 * before * after for side, kernel, before, after in sizes]
    assert epoch.num_operations(64) == 64 * 2 * (3 * sum(products) - products[0])  # the pixels need no gradient


@pytest.mark.slow
def test_notebook_loop_learns(digits):
    torch.manual_seed(0)
    network, images = notebook.StudyNetwork(), notebook.TransformedImages(digits, rotation=7)
    optimizer = notebook.make_optimizer(network)
    accuracies = [notebook.train_epoch(network, optimizer, images, batch_size=16) for _ in range(3)]
    assert accuracies[-1] > max(80, accuracies[0])


def test_recorded_search_is_readable():
    assert search.table() in (ROOT / "docs" / "search.md").read_text()
    for line in search.kept():
        assert line["candidate"] in search.CANDIDATES
        assert len(line["validation_accuracy"]) == search.CANDIDATES[line["candidate"]].recipe.epochs


def test_step4_is_a_candidate_of_the_search():
    """Same layers, same recipe; the last such candidate was measured."""
    step4 = load_step("step4")
    layers = [str(layer) for layer in step4.network().layers]
    found = [name for name, candidate in search.CANDIDATES.items() if candidate.recipe == step4.recipe
             and not candidate.views and [str(layer) for layer in candidate.network().layers] == layers]  # fmt: skip
    assert found
    assert found[-1] in {line["candidate"] for line in search.kept()}


def test_search_does_not_mix_seeds_of_different_code():
    result = CliRunner().invoke(search.main, ["--seeds", "13", "separable 32"])
    assert result.exit_code == 1
    assert result.output == "Error: separable 32: measured by other code; rename it to measure it again\n"


def test_timed_pytorch_answers_as_the_classifier(digits, trained):
    images = digits.test_images[:3].numpy()
    classifier = copy.deepcopy(trained.eval_model).eval()
    expected = classifier(digits.test_images[:3]).detach().numpy()
    assert serving._torch(classifier)(images) == pytest.approx(expected)


def test_calls_per_second(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(serving.time, "perf_counter", lambda: clock[0])

    def ask(images):
        clock[0] += 0.25 if clock[0] else 100.0  # the first call does not count

    assert serving._calls_per_second(ask, None) == 4.0
    assert clock[0] == 100 + serving.SECONDS


def test_recorded_benchmark_notes_what_it_was_measured_on():
    kept = json.loads((ROOT / "results" / "benchmark.json").read_text())
    for name in ("epoch_speedup", "time_to_target_speedup", "overhead_seconds"):
        assert kept[name]["median"] == statistics.median(kept[name]["repeats"])
    for part in __main__.PARTS:
        assert set(kept["measured"][part]) == {"machine", "versions", "code"}, part


@pytest.mark.parametrize("part", ["epoch", "target", "overhead"])
def test_without_mnist_nothing_is_timed(offline, tmp_path, monkeypatch, part):
    monkeypatch.setenv(data.FOLDER_VARIABLE, str(tmp_path))
    result = CliRunner().invoke(__main__.main, ["--no-keep", "--part", part])
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: dataset: MNIST is not in")


@pytest.mark.parametrize(
    ("file", "module", "import_path"),
    [("src/drilldown/__main__.py", "drilldown", "src"), ("src/run.py", "src.run", ".")],
)
def test_overhead_finds_how_a_checkout_is_started(tmp_path, file, module, import_path):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    checkout = overhead.Checkout.at("a checkout", tmp_path)
    assert (checkout.module, checkout.import_path) == (module, tmp_path / import_path)


def test_overhead_refuses_a_folder_without_the_project(tmp_path):
    result = CliRunner().invoke(__main__.main, ["--no-keep", "--part", "overhead", "--checkout", str(tmp_path)])
    assert result.exit_code == 2
    assert f"{tmp_path} is no checkout of this project" in result.output


@pytest.mark.slow
def test_cpu_time_is_taken_when_the_first_epoch_begins(tmp_path):
    (tmp_path / "command.py").write_text("import torch\nprint('before')\ntorch.randperm(2)\nraise SystemExit(1)\n")
    checkout = overhead.Checkout("a command", tmp_path, "command", tmp_path)
    assert overhead.cpu_seconds_until_first_epoch(checkout, []) > 0
