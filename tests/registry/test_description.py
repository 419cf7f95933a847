"""Descriptions in MLflow say what decided, and how the models differ."""

import numpy as np

from drilldown.registry import description, promotion
from tests.registry.test_promotion import LABELS, candidate


def test_a_version_is_described_by_a_list_with_the_figures_of_both_models():
    better, champion = candidate("2", range(10, 15)), candidate("1", range(20), parameters=9_300)
    decision = promotion.decide(better, champion, LABELS)
    text = description.of_version(better, champion, LABELS, decision, promoted=True)
    assert text.splitlines() == [
        f"Promoted: {decision.reason}.",
        "",
        "- Version 2: 99.50 % accuracy, 995 of 1,000 test images; 7,484 parameters",
        "- Version 1: 98.00 % accuracy, 980 of 1,000 test images; 9,300 parameters",
        "- Test images that both classify correctly: 980; only version 2: 15; only version 1: 0; neither: 5",
        "- Wrong answers of version 2 by true class: 1 × 0, 1 × 1, 1 × 2, 1 × 3, 1 × 4",
        f"- Wrong answers of version 1 by true class: {', '.join(f'2 × {label}' for label in range(10))}",
    ]


def test_the_first_version_has_no_rival():
    first = candidate("1", [])
    text = description.of_version(first, None, LABELS, promotion.FIRST, promoted=True)
    assert text.startswith("Promoted: there was no champion before.\n")
    assert "only version" not in text
    assert text.endswith("Wrong answers of version 1 by true class: none")


def test_a_version_promoted_by_force_or_not_at_all_says_so():
    same = candidate("2", [3]), candidate("1", [3])
    decision = promotion.decide(*same, LABELS)
    forced, refused = (description.of_version(*same, LABELS, decision, promoted=by_force) for by_force in (True, False))
    assert forced.startswith("Promoted by force: not significantly better")
    assert refused.startswith("Not promoted: not significantly better")


def test_no_description_has_a_table():
    models = candidate("2", [1]), candidate("1", np.arange(9))
    decision = promotion.decide(*models, LABELS)
    for text in (description.of_version(*models, LABELS, decision, False), description.of_model("a-cnn", "a")):
        assert "|" not in text
