"""Calibration: fitted without the test images, kept as text, and of use."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from drilldown.learning import calibration
from drilldown.learning.calibration import Calibration, calibrate
from drilldown.reporting.statistics import calibration_error


@pytest.fixture(scope="module")
def fitted(trained, digits):
    return calibrate(trained.eval_model, digits)


def answers(trained, images):
    with torch.inference_mode():
        return trained.eval_model.eval()(images).numpy()  # in training mode, it would learn statistics


@pytest.mark.slow
def test_the_test_images_decide_nothing_and_random_numbers_stay(trained, digits, fitted):
    state = torch.get_rng_state()
    other = dataclasses.replace(digits, test_images=digits.test_images[:0], test_labels=digits.test_labels[:0])
    again = calibrate(trained.eval_model, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.as_metadata() == fitted.as_metadata()
    held_out = digits.hold_out(400)
    assert calibrate(trained.eval_model, held_out).as_metadata() != fitted.as_metadata()  # the slice is taken


def test_it_survives_as_text(trained, digits, fitted):
    kept = Calibration.from_metadata(fitted.as_metadata())
    images, probabilities = digits.test_images.numpy(), answers(trained, digits.test_images)
    assert (kept.temperature, kept.threshold) == (fitted.temperature, fitted.threshold)
    assert (kept.unsure(images, probabilities) == fitted.unsure(images, probabilities)).mean() > 0.99
    assert len(fitted.as_metadata()["likeness"]) < 6000


def test_the_temperature_lowers_the_loss_and_changes_no_answer(trained, digits, fitted):
    probabilities = answers(trained, digits.test_images)
    tempered = fitted.temper(probabilities)
    assert (tempered.argmax(1) == probabilities.argmax(1)).all()
    np.testing.assert_allclose(tempered.sum(1), 1, rtol=1e-5)

    def loss(found):
        return F.nll_loss(torch.from_numpy(found).clamp_min(1e-12).log(), digits.test_labels).item()

    assert loss(tempered) <= loss(probabilities) + 1e-3
    right = (tempered.argmax(1) == digits.test_labels.numpy()).astype(bool)
    assert calibration_error(tempered.max(1), right) < 0.05


def test_above_the_threshold_answers_are_right(trained, digits, fitted):
    images, probabilities = digits.test_images.numpy(), answers(trained, digits.test_images)
    right = probabilities.argmax(1) == digits.test_labels.numpy()
    sure = ~fitted.unsure(images, probabilities)
    assert sure.mean() > 0.5
    assert right[sure].mean() > right.mean()
    assert right[sure].mean() > 0.985


def test_what_is_no_digit_is_unlike_one(trained, digits, fitted):
    generator = torch.Generator().manual_seed(1)
    test = digits.test_images
    others = calibration._others(test.float(), digits.test_labels, generator).round().to(torch.uint8)
    unlike = fitted.likeness.scores(others.numpy(), answers(trained, others)) < 0
    like = fitted.likeness.scores(test.numpy(), answers(trained, test)) >= 0
    assert like.mean() > 0.85
    assert unlike.mean() > 2 * (1 - like.mean())  # half of them, by a network that was trained for a second


def test_the_threshold_is_the_lowest_above_which_enough_are_right(monkeypatch):
    monkeypatch.setattr(calibration, "RIGHT", 0.75)
    probabilities = torch.tensor([0.9, 0.2, 0.8, 0.7, 0.6, 0.5])
    right = torch.tensor([True, False, True, True, False, False])
    assert calibration._fit_threshold(probabilities, right) == pytest.approx(0.6)
    assert calibration._fit_threshold(probabilities, ~right) == calibration.HIGHEST


def test_mirrored_images_of_other_data_may_be_as_good(trained, digits):
    own = dataclasses.replace(digits, location="/data/letters")
    assert calibrate(trained.eval_model, own).likeness is None
