"""The documentation agrees with the project: generated parts, links, pictures, entry points, modules."""

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from docs import generate, pictures
from tests.support.project import ROOT

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
LINK = re.compile(r"(!?)\[[^]]*\]\(([^)\s]+)\)")
GENERATED = {  # every generated part, and the page that has it
    "README.md": {"steps"},
    "results.md": {"results", "seeds", "pass_rate", "choices", "engines", "smallest"},
    "search.md": {"search", "seeds"},
    "benchmarks.md": {"measured", "busy", "epoch", "gpu", "target", "overhead", "serving", "framing"},
    "scaling.md": {"cluster"},
    "inference.md": {"written", "real", "others"},
}


def links(page: Path) -> list[tuple[bool, str]]:
    """The page's relative links: is it a picture, and where it points."""
    return [(bool(mark), target) for mark, target in LINK.findall(page.read_text()) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_generated_parts_are_fresh():
    done = CliRunner().invoke(generate.main, ["--check"])
    assert (done.exit_code, done.output) == (0, "")


def test_a_stale_part_is_named_and_written(tmp_path, monkeypatch):
    page = tmp_path / "stale.md"
    page.write_text("before\n<!-- generated: steps -->\n| 99.99 |\n<!-- end -->\nafter\n")
    monkeypatch.setattr(generate, "FILES", [page, ROOT / "README.md"])
    stale = page.read_text()
    done = CliRunner().invoke(generate.main, ["--check"])
    assert (done.exit_code, done.output) == (1, "stale.md: stale, run make docs\n")
    assert page.read_text() == stale
    done = CliRunner().invoke(generate.main)
    assert (done.exit_code, done.output) == (0, "stale.md: written\n")
    assert page.read_text().startswith("before\n<!-- generated: steps -->\n\n| step |")
    assert page.read_text().endswith("<!-- end -->\nafter\n")
    assert CliRunner().invoke(generate.main, ["--check"]).exit_code == 0


def test_every_generated_part_stands_where_readers_look_for_it():
    found = {}
    for file in generate.FILES:
        if names := {match[2].split()[0] for match in generate.PART.finditer(file.read_text())}:
            found[file.name] = names
        assert file.read_text().count("<!-- generated:") == len(generate.PART.findall(file.read_text()))
    assert found == GENERATED
    assert set().union(*found.values()) == set(generate.PARTS)


def test_files_keep_most_of_the_accuracy():
    accuracy = generate.read("written")["accuracy"]
    assert generate.read("written")["images"] == 10_000
    assert accuracy["as files"] >= 0.99 * accuracy["as they are"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for _, target in links(page):
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_every_picture_is_shown_and_can_be_taken_again():
    shown = [(page.parent / target).resolve() for page in PAGES for is_picture, target in links(page) if is_picture]
    assert {file.stem for file in shown} == set(pictures.PICTURES)
    assert {*shown} == {*(ROOT / "docs" / "images").iterdir()}


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_entry_point_and_parameter_is_documented():
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    named = set(re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "cli.md").read_text()))
    assert set(entry_points) <= named
    for name, entry in entry_points.items():
        assert set(entry["parameters"]) <= named, name


def test_every_module_is_described():
    rooms = re.split(r"^### (.*)$", (ROOT / "docs" / "architecture.md").read_text(), flags=re.M)
    described = {
        ("" if room == "On their own" else room, name)
        for room, text in zip(rooms[1::2], rooms[2::2], strict=True)
        for name in re.findall(r"^\| `(\w+\.py)` \|", text, flags=re.M)
    }
    package = ROOT / "src" / "drilldown"
    modules = {
        (file.parent.relative_to(package).as_posix().strip("."), file.name)
        for file in package.rglob("*.py")
        if file.name != "__init__.py"
    }
    assert described == modules
