"""Loss, accuracy, confusion matrix and mistakes against values worked out by hand and by scikit-learn."""

import contextlib
import math

import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from drilldown.engine import accelerate
from drilldown.learning.classifier import Classifier
from drilldown.learning.evaluate import BATCH_SIZE, Evaluation, evaluate, percent
from drilldown.steps import load_step


class Fixed(torch.nn.Module):
    """Answers the digit in the first pixel, with the second pixel as its logit."""

    def logits(self, images):
        assert not self.training
        one_hot = torch.nn.functional.one_hot(images[:, 0, 0].long(), 10).float()
        return one_hot * images[:, 0, 1:2].float()


def pictures(digits, logits):
    images = torch.zeros(len(digits), 28, 28, dtype=torch.uint8)
    images[:, 0, 0] = torch.tensor(digits)
    images[:, 0, 1] = torch.tensor(logits)
    return images


def test_values_worked_out_by_hand():
    images, labels = pictures([1, 2, 3, 3], [5, 1, 9, 2]), torch.tensor([1, 2, 4, 5])
    evaluation = evaluate(Fixed(), images, labels)
    assert evaluation.accuracy == 50.0
    assert evaluation.predictions.tolist() == [1, 2, 3, 3]
    assert evaluation.mistakes().tolist() == [2, 3]  # the more confident one first
    sum_of_exponentials = [math.exp(5) + 9, math.exp(1) + 9, math.exp(9) + 9, math.exp(2) + 9]
    losses = [math.log(total) - right for total, right in zip(sum_of_exponentials, [5, 1, 0, 0], strict=True)]
    assert evaluation.loss == pytest.approx(sum(losses) / 4)
    confusion = evaluation.confusion()
    assert confusion.shape == (10, 10)
    assert (confusion[1, 1], confusion[2, 2], confusion[4, 3], confusion[5, 3]) == (1, 1, 1, 1)
    assert confusion.sum() == 4


def test_several_batches_against_scikit_learn(digits, trained):
    images, labels = digits.train_images, digits.train_labels
    assert len(images) > BATCH_SIZE
    evaluation = evaluate(trained.eval_model, images, labels)
    assert evaluation.accuracy == pytest.approx(100 * accuracy_score(labels, evaluation.predictions))
    assert evaluation.loss == pytest.approx(
        log_loss(labels, evaluation.probabilities.numpy(), labels=range(10)), rel=1e-4
    )
    assert (evaluation.confusion() == confusion_matrix(labels, evaluation.predictions)).all()


@pytest.mark.slow
@pytest.mark.parametrize("engine", [None, "torch", "numba"])
@pytest.mark.parametrize("step", ["step2", "step3", "step4"])
def test_probabilities_are_those_of_the_classifier_itself(digits, step, engine):
    """Within the engine's door, too: there the pools are faster, with the same values."""
    classifier = Classifier(load_step(step).network(), *digits.moments()).eval()
    with torch.inference_mode():
        expected = torch.cat([classifier(batch) for batch in digits.train_images.split(BATCH_SIZE)])
    with accelerate(classifier, engine=engine) if engine else contextlib.nullcontext():
        evaluation = evaluate(classifier, digits.train_images, digits.train_labels)
    assert torch.equal(evaluation.probabilities, expected)


def test_the_mode_is_restored(digits, trained):
    for training in (True, False):
        trained.classifier.train(training)
        evaluate(trained.classifier, digits.test_images, digits.test_labels)
        assert trained.classifier.training is training


def test_percent_is_rounded_once():
    assert all(percent(correct, 10_000) == correct / 100 for correct in range(10_001))
    assert percent(torch.tensor(9940), 10_000) == 99.4


def test_no_mistakes():
    right = Evaluation(torch.tensor([3]), torch.eye(10)[3:4], 0.0)
    assert right.mistakes().tolist() == []
