"""Which of two models serves, by hand-made answers."""

import numpy as np
import pytest
from scipy.stats import binom

from src.lifecycle import promotion
from src.lifecycle.promotion import Candidate

LABELS = np.arange(1000) % 10


def candidate(version, wrong, parameters=7_484):
    """A model that is wrong on the images of these numbers, each time by one."""
    predictions = LABELS.copy()
    predictions[list(wrong)] = (predictions[list(wrong)] + 1) % 10
    return Candidate(version, parameters, predictions)


def by_hand(challenger_alone, champion_alone):
    """The exact two-sided p of McNemar's test, from the binomial distribution itself."""
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
        ((), (), 7_484, False, "not significantly better than version 1"),  # nothing tells them apart
        (range(6), range(6), 100, True, "and smaller: 100 parameters to 7,484"),
    ],
)
def test_decisions(challenger_wrong, champion_wrong, parameters, promoted, why):
    challenger, champion = candidate("2", challenger_wrong, parameters), candidate("1", champion_wrong)
    decision = promotion.decide(challenger, champion, LABELS)
    alone, rival = len({*champion_wrong} - {*challenger_wrong}), len({*challenger_wrong} - {*champion_wrong})
    assert decision.promoted is promoted
    assert why in decision.reason
    assert (decision.challenger_alone, decision.champion_alone) == (alone, rival)
    assert decision.both_wrong == len({*challenger_wrong} & {*champion_wrong})
    assert decision.both_right + alone + rival + decision.both_wrong == 1000
    assert decision.p == pytest.approx(by_hand(alone, rival))


def test_the_line_between_better_and_not():
    assert promotion.decide(candidate("2", ()), candidate("1", range(6)), LABELS).promoted  # p = 0.03
    assert not promotion.decide(candidate("2", ()), candidate("1", range(5)), LABELS).promoted  # p = 0.06


def test_the_words_show_both_tables():
    challenger, champion = candidate("12", (3, 13, 4)), candidate("7", (3, 5, 15, 25))
    decision = promotion.decide(challenger, champion, LABELS)
    text = promotion.markdown(challenger, champion, LABELS, decision, promoted=False)
    assert text.startswith("**Not promoted**: not significantly better than version 7 (")
    forced = promotion.markdown(challenger, champion, LABELS, decision, promoted=True)
    assert forced == text.replace("**Not promoted**", "**Promoted by force**")
    assert "| version 12 right | 994 | 3 |\n| version 12 wrong | 2 | 1 |" in text
    assert "| version 12 | 0 | 0 | 0 | 2 | 1 | 0 | 0 | 0 | 0 | 0 | 3 |" in text
    assert "| version 7 | 0 | 0 | 0 | 1 | 0 | 3 | 0 | 0 | 0 | 0 | 4 |" in text


def test_the_first_has_no_rival():
    text = promotion.markdown(candidate("1", (3,)), None, LABELS, promotion.FIRST, promoted=True)
    assert text.startswith("**Promoted**: there was no champion.")
    assert "| version 1 | 0 | 0 | 0 | 1 |" in text
