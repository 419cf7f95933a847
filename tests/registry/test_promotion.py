"""Promotion: challenger and champion compared on hand-made predictions."""

import numpy as np
import pytest
from scipy.stats import binom

from drilldown.registry import promotion
from drilldown.registry.promotion import Candidate

LABELS = np.arange(1000) % 10


def candidate(version, wrong, parameters=7_484):
    """A model that is wrong on the images with these indices, always by one."""
    predictions = LABELS.copy()
    predictions[list(wrong)] = (predictions[list(wrong)] + 1) % 10
    return Candidate(version, parameters, predictions)


def expected_p(challenger_alone, champion_alone):
    """The exact two-sided p-value of McNemar's test, computed from the binomial distribution."""
    discordant = challenger_alone + champion_alone
    return min(1, 2 * binom.cdf(min(challenger_alone, champion_alone), discordant, 0.5))


@pytest.mark.parametrize(
    ("challenger_wrong", "champion_wrong", "parameters", "promoted", "why"),
    [
        (range(10, 15), range(20), 7_484, True, "significantly better than version 1"),  # 15 to 0
        (range(10, 15), range(20), 99_999, True, "significantly better than version 1"),
        (range(20), range(10, 15), 7_484, False, "significantly worse than version 1"),
        (range(20), range(10, 15), 10, False, "significantly worse than version 1"),
        (range(20), range(17), 7_483, True, "not significantly worse than version 1"),  # 0 to 3
        (range(20), range(17), 7_484, False, "not significantly better than version 1"),
        (range(17), range(20), 7_484, False, "not significantly better than version 1"),
        (range(5, 15), range(10), 7_484, False, "not significantly better than version 1"),  # 5 to 5
        ((), (), 7_484, False, "not significantly better than version 1"),  # no difference at all
        (range(6), range(6), 100, True, "and smaller: 100 parameters to 7,484"),
    ],
)
def test_decisions(challenger_wrong, champion_wrong, parameters, promoted, why):
    challenger, champion = candidate("2", challenger_wrong, parameters), candidate("1", champion_wrong)
    decision = promotion.decide(challenger, champion, LABELS)
    challenger_alone = len({*champion_wrong} - {*challenger_wrong})
    champion_alone = len({*challenger_wrong} - {*champion_wrong})
    assert decision.promoted is promoted
    assert why in decision.reason
    assert (decision.challenger_alone, decision.champion_alone) == (challenger_alone, champion_alone)
    assert decision.both_wrong == len({*challenger_wrong} & {*champion_wrong})
    assert decision.both_right + challenger_alone + champion_alone + decision.both_wrong == 1000
    assert decision.p == pytest.approx(expected_p(challenger_alone, champion_alone))


def test_level_of_significance():
    assert promotion.decide(candidate("2", ()), candidate("1", range(6)), LABELS).promoted  # p = 0.03
    assert not promotion.decide(candidate("2", ()), candidate("1", range(5)), LABELS).promoted  # p = 0.06


def test_the_answers_of_both_models_in_tables():
    challenger, champion = candidate("12", (3, 13, 4)), candidate("7", (3, 5, 15, 25))
    decision = promotion.decide(challenger, champion, LABELS)
    both, by_digit = (
        [[*row.values()] for row in rows] for rows in promotion.tables(challenger, champion, LABELS, decision)
    )
    assert both == [["version 12 right", 994, 3], ["version 12 wrong", 2, 1]]
    assert by_digit == [
        ["version 12", 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 3],
        ["version 7", 0, 0, 0, 1, 0, 3, 0, 0, 0, 0, 4],
    ]


def test_the_first_champion_has_one_table():
    (by_digit,) = promotion.tables(candidate("1", (3,)), None, LABELS, promotion.FIRST)
    assert [[*row.values()] for row in by_digit] == [["version 1", 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]]
