"""This project's tags carry a prefix; those of version 0.1.0, which had none, are read too."""

from drilldown.tracking.tags import ours, prefixed


def test_tags_are_written_with_the_prefix_and_read_without_it():
    written = prefixed({"step": "step4", "mlflow.runName": "step4 seed 0"})
    assert written == {"drilldown.step": "step4", "mlflow.runName": "step4 seed 0"}
    read = ours(written)
    assert (read["step"], read["mlflow.runName"]) == ("step4", "step4 seed 0")


def test_a_tag_without_the_prefix_is_read_unless_there_is_one_with_it():
    assert ours({"step": "step3"})["step"] == "step3"
    assert ours({"step": "somebody's", "drilldown.step": "step4"})["step"] == "step4"
