"""The comparison shows the finished runs that belong together, and names what is missing."""

import base64
import io
import json
import re
from html import escape
from html.parser import HTMLParser

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drilldown.experiments import compare
from drilldown.learning.recipe import Goal, Recipe
from drilldown.reporting import plots, report
from drilldown.tracking import runs
from drilldown.tracking.tags import ours
from tests.experiments.finished import TABLE, finished_run
from tests.support.browser import needs_chromium, open_page

CAPTION = plots.Caption("The steps side by side on mnist", "step2, step4; run 3f2a91c0")


def collect(step, like=None, **recipe):
    return compare.collect(step, "mnist", "of mnist", ["0"], like=like, recipe=Recipe(**recipe) if recipe else None)


def accuracies(entry):
    return {run["seed"]: run["test_accuracy"] for run in entry.record["runs"]}


@pytest.mark.slow
def test_the_newest_run_of_each_seed_that_agrees_with_the_newest_run(store):
    finished_run("step2", 0, [90.0, 91.0])
    finished_run("step2", 1, [92.0, 93.0], gate="passed")
    finished_run("step2", 2, [1.0, 1.0], lr=0.5)  # another recipe
    finished_run("step2", 3, [1.0])  # another length
    finished_run("step2", 4, [1.0, 1.0], dataset="digits")
    finished_run("step2", 9, [1.0, 1.0], dataset="copy", digest="of mnist")
    finished_run("step2", 5, [1.0, 1.0], validation=5000)
    finished_run("step3", 6, [1.0, 1.0])
    finished_run("step2", 7, [1.0, 1.0], status="KILLED")
    finished_run("step2", 8, [1.0, 1.0], engine="torch")
    finished_run("step2", 0, [94.0, 95.0])
    entry = collect("step2")
    assert accuracies(entry) == {0: [94.0, 95.0], 1: [92.0, 93.0]}
    assert (entry.passed, entry.left_out, entry.goal) == (1, 4, Goal(99.4))
    assert entry.machines == {"2 × CPU"}
    assert entry.layers == {"Conv2d": 2, "BatchNorm2d": 1}


def test_the_runs_that_agree_with_a_given_run(store):
    wanted = finished_run("step2", 0, [90.0, 91.0])
    finished_run("step2", 0, [1.0], lr=0.5)
    assert accuracies(collect("step2", wanted)) == {0: [90.0, 91.0]}
    assert accuracies(collect("step2")) == {0: [1.0]}
    assert accuracies(collect("step2", lr=0.7)) == {0: [1.0]}  # no run has this recipe


def test_runs_with_the_recipe_of_the_step_are_preferred(store):
    finished_run("step2", 0, [90.0, 91.0])
    finished_run("step2", 0, [94.0, 95.0])
    finished_run("step2", 0, [1.0], lr=0.5)  # a trial
    assert accuracies(collect("step2", lr=0.01, epochs=2)) == {0: [94.0, 95.0]}
    assert accuracies(collect("step2", lr=0.01, epochs=3)) == {0: [1.0]}  # no run has this recipe


@pytest.mark.slow
def test_runs_of_version_0_1_are_compared(store):
    recipe = {"epochs": 2, "schedule": "one-cycle", "warmup_fraction": 0.3, "ema_epochs": 0.5, "translate": 0.02}
    finished_run("step2", 0, [90.0, 91.0], version_0_1=True, gate="passed", **recipe)
    finished_run("step2", 1, [92.0, 93.0], version_0_1=True, **recipe)
    finished_run("step2", 2, [1.0, 1.0], version_0_1=True, **recipe | {"translate": 0.1})
    entry = collect("step2", **recipe)
    assert accuracies(entry) == {0: [90.0, 91.0], 1: [92.0, 93.0]}
    assert (entry.passed, entry.left_out, entry.machines) == (1, 1, {"2 × CPU"})
    assert entry.record["recipe"].items() >= recipe.items()
    assert compare.dataset_of(compare.newest("auto", ["0"])) == ("mnist", "of mnist")

    finished_run("step3", 0, [90.0, 91.0], **recipe | {"translate": 0.05})
    changes = compare.changes(entry, collect("step3"))
    assert changes == "parameters 2,000 → 3,000; translate 0.02 → 0.05"  # no change of name


def test_runs_of_two_versions_are_not_seeds_of_one_entry(store):
    finished_run("step2", 0, [90.0, 91.0], version_0_1=True)
    finished_run("step2", 1, [92.0, 93.0])
    entry = collect("step2")
    assert accuracies(entry) == {1: [92.0, 93.0]}
    assert entry.left_out == 1


def test_no_run(store):
    assert collect("step1") is None
    assert compare.newest("auto", ["0"]) is None
    finished_run("step1", 0, [90.0], validation=5000)
    assert compare.newest("mnist", ["0"]) is None
    on_digits = finished_run("step1", 0, [90.0], dataset="digits")
    assert compare.newest("auto", ["0"]).info.run_id == on_digits
    on_mnist = finished_run("step1", 0, [90.0])
    finished_run("step1", 0, [90.0], dataset="digits")
    assert compare.newest("auto", ["0"]).info.run_id == on_mnist


@pytest.fixture
def entries(store):
    finished_run("step2", 0, [99.0, 99.5, 99.5, 99.3, 99.4, 99.5])
    finished_run("step2", 1, [99.0, 99.5, 99.5, 99.4, 99.4, 99.7], gate="passed")
    deeper = TABLE.replace("BatchNorm2d-2", "Dropout-2")
    finished_run("step4", 0, [98.0, 98.5], lr=0.02, layers=deeper)
    return {step: collect(step) for step in ("step1", "step2", "step4")}


def test_one_row_per_step(entries):
    rows = compare.rows(entries, "mnist")
    assert len({tuple(row) for row in rows}) == 1  # the same headings
    assert [row["step"] for row in rows] == ["step1", "step2", "step4"]
    assert rows[0]["final test accuracy (%)"] == "no finished run"
    assert (rows[0]["published best (%)"], rows[0]["published epochs at 99.4 %"]) == ("99.36", "0")
    assert rows[1] == {
        "step": "step2",
        "parameters": "2,000",
        "seeds": "2",
        "epochs": "6",
        "final test accuracy (%)": "99.60 ± 0.14",
        "best epoch (%)": "99.60 ± 0.14",
        "lowest of the last epochs (%)": "99.35 ± 0.07",
        "epochs at target": "4.5 ± 0.7",
        "target (%)": "99.4",
        "gate passed": "1 of 2",
        "seconds an epoch": "7.0",
        "published best (%)": "98.63",
        "published epochs at 99.4 %": "0",
        "changes from the step before": "–",
    }
    assert rows[2]["changes from the step before"] == (
        "parameters 2,000 → 4,000; -1 BatchNorm2d; +1 Dropout; epochs 6 → 2; lr 0.01 → 0.02"
    )
    shown = [line.split() for line in compare.screen(rows).splitlines()]
    assert shown[1][:6] == ["step1", "–", "0", "no", "finished", "run"]
    assert shown[2][:6] == ["step2", "2,000", "2", "99.60", "±", "0.14"]


def test_published_figures_are_shown_for_mnist_only(entries):
    assert {row["published best (%)"] for row in compare.rows(entries, "digits")} == {"–"}


def test_numbers(entries):
    numbers = compare.numbers(entries, compare.rows(entries, "mnist")).set_index("step")
    assert list(numbers.index) == ["step1", "step2", "step4"]
    assert numbers.loc["step1", "published best (%)"] == "99.36"
    assert numbers.loc["step1", "seeds"] == 0
    assert np.isnan(numbers.loc["step1", "final_accuracy_mean"])
    assert "lr 0.01 → 0.02" in numbers.loc["step4", "changes from the step before"]
    assert numbers.loc["step2", "final_accuracy_mean"] == pytest.approx(99.6)
    assert numbers.loc["step2", "final_accuracy_std"] == pytest.approx(np.std([99.5, 99.7], ddof=1))
    assert numbers.loc["step2", "min_accuracy_last_k_mean"] == pytest.approx(99.35)
    assert numbers.loc["step2", "training_seconds_mean"] == 42
    assert (numbers.loc["step2", "seeds"], numbers.loc["step2", "passed"]) == (2, 1)
    assert np.isnan(numbers.loc["step4", "final_accuracy_std"])  # one run


class Page(HTMLParser):
    """The cells and the addresses of a page."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.addresses, self.in_cell = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.in_cell = tag in ("td", "th")
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        self.in_cell = False

    def handle_data(self, data):
        if self.in_cell:
            self.cells.append(data)


@pytest.mark.slow
def test_the_page_needs_no_other_file(entries):
    rows = compare.rows(entries, "mnist")
    rows[0]["step"] = "<script>step1</script>"
    figure = compare.figure(entries, CAPTION)
    page = Page(compare.page(rows, ["a < b"], figure, CAPTION))
    assert page.cells == [*rows[0], *(value for row in rows for value in row.values())]
    (address,) = page.addresses
    picture = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(picture)).size[0] > 1000
    assert "a &lt; b" in compare.page(rows, ["a < b"], figure, CAPTION)


WIDTHS = (360, 700, 1000, 1300, 1400, 2000)  # of a phone, of a screen, and around the change of the layout
PROBE = """<!doctype html><meta charset="utf-8">{frames}<pre></pre><script>
addEventListener("load", () => {{
  const seen = [...document.querySelectorAll("iframe")].map((frame) => {{
    const page = frame.contentDocument;
    const isWhole = (part) => {{
      const box = part.getBoundingClientRect();
      return box.width > 0 && box.left >= 0 && box.right <= frame.clientWidth && part.scrollWidth <= part.clientWidth;
    }};
    const isNamed = (cell) => frame.contentWindow.getComputedStyle(cell, "::before").content != "none";
    const cells = [...page.querySelectorAll("td")].filter(isWhole);
    return {{
      width: page.documentElement.scrollWidth,
      headings: [...page.querySelectorAll("th")].filter(isWhole).map((heading) => heading.textContent),
      cells: cells.map((cell) => [isNamed(cell) ? cell.dataset.heading : null, cell.textContent]),
      picture: page.querySelector("img").width,
    }};
  }});
  document.querySelector("pre").textContent = JSON.stringify(seen);
}});
</script>"""


@pytest.mark.slow
@needs_chromium
def test_the_page_shows_every_column_at_every_width(entries, tmp_path):
    rows = compare.rows(entries, "mnist")
    page = compare.page(rows, ["a note"], compare.figure(entries, CAPTION), CAPTION)
    frames = (f'<iframe style="width: {width}px; border: 0" srcdoc="{escape(page)}"></iframe>' for width in WIDTHS)
    (tmp_path / "probe.html").write_text(PROBE.format(frames="".join(frames)))
    with open_page((tmp_path / "probe.html").as_uri(), 2400, 1600) as probe:
        found = json.loads(probe.locator("pre").inner_text())
    wanted = [(heading, value) for row in rows for heading, value in row.items()]
    for width, seen in zip(WIDTHS, found, strict=True):
        assert seen["width"] == width  # nothing to scroll to
        assert [value for _, value in seen["cells"]] == [value for _, value in wanted]
        if width < 1360:  # cards: each value has its heading
            assert [tuple(cell) for cell in seen["cells"]] == wanted
        else:
            assert seen["headings"] == list(rows[0])
        assert min(width, 800) - 40 < seen["picture"] <= width


@pytest.mark.slow
def test_the_page_says_what_it_shows_and_fits_a_phone(entries):
    page = compare.page(compare.rows(entries, "mnist"), [], compare.figure(entries, CAPTION), CAPTION)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert f"<title>{CAPTION.title} ({CAPTION.details})</title>" in page
    assert f"<h1>{CAPTION.title}</h1>" in page
    assert re.findall("<h2>(.*?)</h2>", page) == ["Results", "Accuracy", "Notes"]
    assert "prefers-color-scheme: dark" in page


def test_the_caption_names_the_steps_that_have_runs(entries):
    assert compare.caption(entries, "mnist", "run 3f2a91c0") == CAPTION
    assert compare.caption({"step1": None}, "digits", "x").details == "no step; x"


def test_the_notes_name_missing_and_left_out_runs(entries, store):
    notes = "\n".join(compare.notes(entries, "mnist", {}))
    assert "step1 is missing here: it has no finished run on mnist." in notes
    assert "step1 is missing here: its run failed: no." in compare.notes(entries, "mnist", {"step1": "no"})
    assert "left out" not in notes
    finished_run("step4", 0, [99.0])
    assert "step4: other runs left out, older or of another code, recipe or engine: 1." in compare.notes(
        {"step4": collect("step4")}, "mnist", {}
    )


@pytest.mark.slow
def test_the_comparison_is_logged(entries, store):
    rows, notes, figure = compare.rows(entries, "mnist"), ["a note"], compare.figure(entries, CAPTION)
    with runs.run("compare", {}) as run_id:
        texts = compare.description(rows, notes), compare.markdown(rows, notes)
        page = compare.page(rows, notes, figure, CAPTION)
        runs.log_comparison("mnist", *texts, page, compare.numbers(entries, rows), figure)
    tags = store.get_run(run_id).data.tags
    assert ours(tags)["compare"] == "mnist"
    assert "- **step2**: parameters 2,000, seeds 2, " in tags["mlflow.note.content"]
    assert "- **step1**: no finished run\n" in tags["mlflow.note.content"]
    assert "- a note\n" in tags["mlflow.note.content"]
    assert not re.search(r"\||!\[", tags["mlflow.note.content"])  # no table, no picture
    kept = {file.path for file in store.list_artifacts(run_id)}
    assert kept == {"compare.md", "compare.html", "compare.csv", "compare.png"}
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/compare.md")
    assert report.table(rows) in text
    assert re.findall(r"!\[.*\]\((.*)\)", text) == ["compare.png"]
    table = pd.read_csv(io.StringIO(mlflow.artifacts.load_text(f"runs:/{run_id}/compare.csv")))
    assert list(table["step"]) == ["step1", "step2", "step4"]


def test_a_comparison_without_any_run(store):
    entries = dict.fromkeys(("step1", "step2"))
    rows = compare.rows(entries, "digits")
    assert list(compare.numbers(entries, rows)["seeds"]) == [0, 0]
    assert "no finished run" in compare.page(rows, [], compare.figure(entries, CAPTION), CAPTION)
