"""A dataset in a file that processes share."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from drilldown.learning import mapped


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc")
def test_a_dataset_is_mapped_as_it_was_written(digits, tmp_path):
    for dataset in (digits, digits.hold_out(100)):
        with (tmp_path / "dataset").open("wb") as file:
            mapped.write(dataset, file)
        read = mapped.read(tmp_path / "dataset")
        for field in fields(dataset):
            before, after = getattr(dataset, field.name), getattr(read, field.name)
            if isinstance(before, torch.Tensor):
                assert torch.equal(before, after)
            else:
                assert before == after
        assert read.moments() == dataset.moments()
        assert str(tmp_path / "dataset") in Path("/proc/self/maps").read_text()  # its pages are those of the file
    content = (tmp_path / "dataset").read_bytes()
    read.train_images.zero_()
    assert (tmp_path / "dataset").read_bytes() == content
