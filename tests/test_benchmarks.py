"""The benchmarks' own arithmetic, and that the loops they compare learn; no time is tested."""

import copy
import json
import statistics

import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT

from benchmarks import __main__, epoch, notebook, search, serving, target
from src.learning import data
from steps import step4


@pytest.mark.parametrize(
    ("accuracies", "first"),
    [
        ([99.0, 99.4, 99.5], 2),
        ([99.4, 99.4], 1),
        ([99.5, 99.3, 99.4], 3),
        ([99.5, 99.5, 99.39], None),
    ],
)
def test_when_the_target_holds_for_good(accuracies, first):
    assert target.holds_from(accuracies, 99.4) == first


def test_the_published_network_has_its_parameters():
    assert sum(parameter.numel() for parameter in notebook.Published().parameters()) == 9_300


def test_operations_of_a_batch():
    """Multiply-adds of each convolution by hand, twice (multiply, add), forward, and backward for weights and input."""
    sizes = [  # maps out, kernel, channels in, channels out
        (26, 3, 1, 4), (24, 3, 4, 8), (24, 1, 8, 16), (10, 3, 16, 16), (10, 1, 16, 16), (8, 3, 16, 16), (6, 3, 16, 16),
        (4, 3, 16, 10), (1, 1, 10, 10),
    ]  # fmt: skip
    products = [side**2 * kernel**2 * before * after for side, kernel, before, after in sizes]
    assert epoch.operations(64) == 64 * 2 * (3 * sum(products) - products[0])  # the pixels need no gradient


def test_the_notebooks_loop_learns(digits):
    torch.manual_seed(0)
    network, pictures = notebook.Published(), notebook.Pictures(digits, rotation=7)
    optimizer = notebook.optimizer(network)
    accuracies = [notebook.train_epoch(network, optimizer, pictures, batch_size=16) for _ in range(3)]
    assert accuracies[-1] > max(80, accuracies[0])


def test_the_search_kept_what_its_page_shows():
    assert search.table() in (ROOT / "results" / "step4-search.md").read_text()
    for line in search.kept():
        assert line["candidate"] in search.CANDIDATES
        assert len(line["validation_accuracy"]) == search.CANDIDATES[line["candidate"]].recipe.epochs


def test_step4_is_a_candidate_of_the_search():
    """Its network, layer for layer, and its recipe; what was asked again stands last."""
    layers = [str(layer) for layer in step4.Network().layers]
    found = [name for name, candidate in search.CANDIDATES.items() if candidate.recipe == step4.RECIPE
             and not candidate.views and [str(layer) for layer in candidate.network().layers] == layers]  # fmt: skip
    assert found
    assert found[-1] in {line["candidate"] for line in search.kept()}


def test_the_search_does_not_mix_seeds_of_other_code():
    result = CliRunner().invoke(search.main, ["--seeds", "13", "separable 32"])
    assert result.exit_code == 1
    assert result.output == "Error: separable 32: measured by other code; to ask again, give it another name\n"


def test_the_ways_to_an_answer_agree(digits, trained):
    images = digits.test_images[:3].numpy()
    classifier = copy.deepcopy(trained.result).eval()
    expected = classifier(digits.test_images[:3]).detach().numpy()
    assert serving._torch(classifier)(images) == pytest.approx(expected)


def test_calls_a_second(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(serving.time, "perf_counter", lambda: clock[0])

    def ask(images):
        clock[0] += 0.25 if clock[0] else 100.0  # the first call does not count

    assert serving._calls_a_second(ask, None) == 4.0
    assert clock[0] == 100 + serving.SECONDS


def test_a_kept_benchmark_says_what_it_was_measured_on():
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
