"""Loss, accuracy, confusion and mistakes against values worked out by hand and by scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from src.learning.classifier import Classifier
from src.learning.evaluate import BATCH, Evaluation, evaluate, percent
from steps import step2, step3, step4


class Fixed(torch.nn.Module):
    """Says the digit that the first pixel holds, sure by as much as the second pixel holds."""

    def logits(self, images):
        assert not self.training
        sure = torch.nn.functional.one_hot(images[:, 0, 0].long(), 10).float()
        return sure * images[:, 0, 1:2].float()


def pictures(digits, strengths):
    images = torch.zeros(len(digits), 28, 28, dtype=torch.uint8)
    images[:, 0, 0] = torch.tensor(digits)
    images[:, 0, 1] = torch.tensor(strengths)
    return images


def test_by_hand():
    images, labels = pictures([1, 2, 3, 3], [5, 1, 9, 2]), torch.tensor([1, 2, 4, 5])
    found = evaluate(Fixed(), images, labels)
    assert found.accuracy == 50.0
    assert found.predictions.tolist() == [1, 2, 3, 3]
    assert found.mistakes().tolist() == [2, 3]  # the surer one first
    sum_of_exponentials = [math.exp(5) + 9, math.exp(1) + 9, math.exp(9) + 9, math.exp(2) + 9]
    losses = [math.log(total) - right for total, right in zip(sum_of_exponentials, [5, 1, 0, 0], strict=True)]
    assert found.loss == pytest.approx(sum(losses) / 4)
    confusion = found.confusion()
    assert confusion.shape == (10, 10)
    assert (confusion[1, 1], confusion[2, 2], confusion[4, 3], confusion[5, 3]) == (1, 1, 1, 1)
    assert confusion.sum() == 4


def test_against_scikit_learn_over_several_batches(digits, trained):
    images, labels = digits.train_images, digits.train_labels  # 1,437: more than one batch
    found = evaluate(trained.result, images, labels)
    assert found.accuracy == pytest.approx(100 * accuracy_score(labels, found.predictions))
    assert found.loss == pytest.approx(log_loss(labels, found.probabilities.numpy(), labels=range(10)), rel=1e-4)


@pytest.mark.parametrize("step", [step2, step3, step4])
def test_the_values_are_those_of_the_classifier_itself(digits, step):
    classifier = Classifier(step.Network(), *digits.moments()).eval()
    with torch.inference_mode():
        own = torch.cat([classifier(batch) for batch in digits.train_images.split(BATCH)])  # with torch's own pools
    found = evaluate(classifier, digits.train_images, digits.train_labels)
    assert torch.equal(found.probabilities, own)


def test_the_mode_is_left_as_it_was(digits, trained):
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
