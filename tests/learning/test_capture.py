"""Recorded updates on a CPU: what is recorded and replayed, and through which tensors. See test_cuda.py for graphs."""

import gc
import weakref

import pytest
import torch

from drilldown.learning import train
from drilldown.learning.capture import CapturedUpdate, Recorder
from drilldown.learning.update import Update
from tests.support.networks import SMALL_RECIPE, SmallNetwork


class Repeater(Recorder):
    """A recorder whose replays make the recorded call again."""

    def __init__(self):
        self.warmed_up = self.recorded = self.replayed = 0

    def warm_up(self, call):
        self.warmed_up += 1
        call()

    def record(self, call):
        self.recorded += 1

        def replay():
            self.replayed += 1
            call()

        return replay


class Refuser(Repeater):
    """A recorder that fails at the second kind of batch."""

    def record(self, call):
        if self.recorded == 1:
            try:
                raise RuntimeError("operation not permitted\nCompile with more checks")
            finally:
                raise RuntimeError("the capture has failed")
        return super().record(call)


def new_state(digits):
    device = train.prepare(0, "cpu")
    return train.init_state(SmallNetwork(), SMALL_RECIPE, digits, 0, device)


def make_updates(state, digits, recorder=None, epochs=2):
    """Update with three batches an epoch, the last one shorter; the tensors of a batch are used again for the next."""
    parts = state.classifier.train(), state.optimizer, state.average, 0.1, 3
    update = CapturedUpdate(*parts, recorder=recorder) if recorder else Update(*parts)
    pixels, labels = torch.empty(16, 28, 28), torch.empty(16, dtype=torch.int64)
    for epoch in range(epochs):
        update.start_epoch()
        for number, count in enumerate((16, 16, 10)):
            pixels[:count] = digits.train_images[number * 16 :][:count]
            labels[:count] = digits.train_labels[number * 16 :][:count]
            update.learning_rate.fill_(0.1 / (1 + epoch + number))
            update(pixels[:count], labels[:count], average=number == 2)
    return update


def tensors(state, update):
    weights = [value for part in (state.classifier, state.average) for value in part.state_dict().values()]
    momenta = [state.optimizer.state[parameter]["momentum_buffer"] for parameter in state.classifier.parameters()]
    return [*weights, *momenta, update.losses, update.correct]


@pytest.mark.parametrize("recorder", [Repeater(), Refuser()], ids=["recorded", "recording fails"])
def test_a_recorded_update_does_what_the_update_does(recorder, digits):
    plain, recorded = new_state(digits), new_state(digits)
    torch.manual_seed(1)
    expected = tensors(plain, make_updates(plain, digits, epochs=3))
    torch.manual_seed(1)  # of dropout
    found = tensors(recorded, make_updates(recorded, digits, recorder, epochs=3))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_each_kind_of_batch_is_made_once_recorded_once_and_then_replayed(digits):
    recorder = Repeater()
    make_updates(new_state(digits), digits, recorder, epochs=4)
    # Eight batches of 16, four of 10; the first of each kind is made, the others are replayed.
    assert (recorder.warmed_up, recorder.recorded, recorder.replayed) == (2, 2, 7 + 3)


def test_after_a_failure_a_line_says_why_and_nothing_is_recorded(digits, capsys):
    recorder = Refuser()
    make_updates(new_state(digits), digits, recorder, epochs=4)
    assert capsys.readouterr().out == (
        "CUDA graphs: not used, because the training cannot be captured: operation not permitted\n"
    )
    # All of 16 until the second one of 10, which is the sixth update.
    assert (recorder.warmed_up, recorder.recorded, recorder.replayed) == (2, 1, 3)


def test_a_recorded_update_reads_from_tensors_of_its_own(digits):
    """A graph reads from where it was recorded, so these must not be the caller's tensors."""
    state, seen = new_state(digits), []
    logits = state.classifier.logits
    state.classifier.logits = lambda pixels: seen.append(pixels.data_ptr()) or logits(pixels)
    update = CapturedUpdate(state.classifier.train(), state.optimizer, None, 0.0, 9, Repeater())
    given = [digits.train_images[:16].float() + shade for shade in range(4)]
    for pixels in given:
        update(pixels, digits.train_labels[:16], average=False)
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert seen[0] not in {pixels.data_ptr() for pixels in given}


def test_recordings_are_gone_with_the_update(digits):
    """Without waiting for the garbage collector: they keep memory of the device."""
    update = make_updates(new_state(digits), digits, Repeater())
    here = weakref.ref(update)
    gc.disable()
    try:
        del update
        assert here() is None
    finally:
        gc.enable()
