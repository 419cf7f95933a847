"""The benchmarks' arithmetic, and that the loops they compare learn; no time is tested."""

import copy
import json
import statistics
from dataclasses import asdict, replace

import pytest
import torch
from click.testing import CliRunner

from benchmarks import __main__, epoch, gpu, notebook, overhead, serving, target
from drilldown.learning import data, train
from drilldown.learning.recipe import Recipe, Target
from drilldown.learning.side_by_side import Trained
from drilldown.steps import ROOT, Step, load_step
from tests.support import networks


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


def test_step4_is_a_candidate_of_the_recorded_search():
    record = json.loads((ROOT / "results" / "step4-search.json").read_text())
    lines = [json.loads(line) for line in (ROOT / "results" / "step4-search.jsonl").read_text().splitlines()]
    recipes = {name: record["recipe"] | found["recipe"] for name, found in record["candidates"].items()}
    for line in lines:
        assert len(line["validation_accuracy"]) == recipes[line["candidate"]]["epochs"]
    step4 = load_step("step4")
    parameters = sum(parameter.numel() for parameter in step4.network().parameters())
    assert {line["candidate"] for line in lines if line["parameters"] == parameters} & {
        name for name, recipe in recipes.items() if recipe == asdict(step4.recipe)
    }


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


@pytest.fixture
def small_gpu_benchmark(monkeypatch, digits):
    """The benchmark for a GPU, with a small network, on the CPU, one seed after the other."""
    step = Step("step4", networks.SmallNetwork, Recipe(epochs=2, batch_size=144), Target(last=2), "")
    few = replace(digits, train_images=digits.train_images[:144], train_labels=digits.train_labels[:144])

    def one_after_the_other(make_network, recipe, dataset, seeds, at_a_time):
        for seed in seeds:
            state = train.init_state(make_network(), recipe, dataset, seed, train.prepare(seed, "cpu"))
            list(train.fit(state, recipe, dataset, engine="torch"))
            yield Trained(seed, state)

    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu.data, "load", lambda name: few)
    monkeypatch.setattr(gpu, "load_step", lambda name: step)
    monkeypatch.setattr(gpu, "fit_side_by_side", one_after_the_other)
    monkeypatch.setattr(gpu.torch.cuda, "get_device_name", lambda device: "a card")


def test_gpu_figures_are_kept_as_they_come(small_gpu_benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "RESULT", tmp_path / "result.json")
    kept = []
    for figures in gpu.measure(seeds=3, at_a_time=2):
        gpu.write_figures([figures], keep=True)
        kept.append(json.loads(gpu.RESULT.read_text()))
    assert [list(figures["steps"]) for figures in kept] == [
        ["step4"], ["step4", "step3"], ["step4", "step3", "step1"], ["step4", "step3", "step1"]]  # fmt: skip
    last = kept[-1]
    assert last["card"] == "a card"
    assert all(len(step["epoch_seconds"]) == len(step["test_accuracy"]) == 2 for step in last["steps"].values())
    assert [len(accuracies) for accuracies in last["side_by_side"]["test_accuracy"]] == [2, 2, 2]


def test_recorded_gpu_figures_are_of_side_by_side_and_alone_the_same():
    """A seed has the same accuracies in both."""
    kept = json.loads((ROOT / "results" / "benchmark-gpu.json").read_text())
    together = kept["side_by_side"]
    assert together["test_accuracy"][0] == kept["steps"][together["step"]]["test_accuracy"]
    assert {"card", "versions", "code"} <= set(kept)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_nothing_is_timed():
    result = CliRunner().invoke(__main__.main, ["--part", "gpu"])
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: device is 'cuda': this machine has no CUDA device")


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
