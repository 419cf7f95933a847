"""The digest of a model's files."""

from drilldown.registry import integrity


def test_digest_depends_on_contents_and_paths(tmp_path):
    model = tmp_path / "model"
    (model / "data").mkdir(parents=True)
    (model / "MLmodel").write_text("flavors")
    (model / "data" / "model.pt2").write_bytes(b"weights")
    registered = integrity.digest(model)
    (model / "registered_model_meta").write_text("MLflow's note on a download")
    (model / "__pycache__").mkdir()
    (model / "__pycache__" / "script.pyc").write_bytes(b"what Python adds where the model is loaded")
    assert integrity.digest(model) == registered
    (model / "data" / "model.pt2").write_bytes(b"Weights")
    assert integrity.digest(model) != registered
    (model / "data" / "model.pt2").write_bytes(b"weights")
    assert integrity.digest(model) == registered
    (model / "data" / "model.pt2").rename(model / "model.pt2")
    assert integrity.digest(model) != registered
