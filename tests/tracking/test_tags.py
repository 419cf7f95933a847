"""This project's tags carry a prefix; those of version 0.1.0, which had none, are read too."""

from drilldown.tracking.tags import ours, packed, prefixed


def test_tags_are_written_with_the_prefix_and_read_without_it():
    written = prefixed({"step": "step4", "mlflow.runName": "step4 seed 0"})
    assert written == {"drilldown.step": "step4", "mlflow.runName": "step4 seed 0"}
    read = ours(written)
    assert (read["step"], read["mlflow.runName"]) == ("step4", "step4 seed 0")


def test_a_tag_without_the_prefix_is_read_unless_there_is_one_with_it():
    assert ours({"step": "step3"})["step"] == "step3"
    assert ours({"step": "somebody's", "drilldown.step": "step4"})["step"] == "step4"


def test_values_that_were_packed_into_one_tag_are_read_as_tags():
    written = prefixed({"step": "step4", **packed("fingerprint", {"code.digest": "c0de", "versions.torch": "2"})})
    assert set(written) == {"drilldown.step", "drilldown.fingerprint"}
    read = ours(written | {"code.digest": "somebody's", "fingerprint": "no JSON, and not ours"})
    assert (read["step"], read["code.digest"], read["versions.torch"]) == ("step4", "c0de", "2")


def test_a_tag_of_its_own_is_read_as_before():
    assert ours(prefixed({"code.digest": "c0de"}))["code.digest"] == "c0de"
