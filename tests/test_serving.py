"""The champion answers over HTTP, and from the command line, as it does in Python."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import mlflow
import numpy as np
import pytest

from drilldown.registry import registry
from tests.support.programs import server
from tests.support.tracked import track

pytestmark = pytest.mark.slow
MODEL = "models:/digits-cnn@champion"


@pytest.fixture
def champion(store, trained, digits):
    """The small network as champion; it is what answers in this process."""
    run_id, verdict, model, evaluation = track(trained, digits)
    assert registry.register(model, run_id, "small", verdict, evaluation.accuracy, digits).champion
    return mlflow.pyfunc.load_model(MODEL)


def test_over_http_and_from_a_file(champion, digits, tmp_path):
    images = np.tile(digits.test_images.numpy(), (3, 1, 1))[:1000]
    serve = ["mlflow", "models", "serve", "--model-uri", MODEL, "--env-manager", "local"]
    with server(serve, os.environ) as port:

        def ask(instances):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations",
                json.dumps({"instances": instances}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                return np.array(json.load(answer)["predictions"], np.float32)

        for count in (1, 1000):
            answers = ask(images[:count].tolist())
            assert answers.shape == (count, 10)
            np.testing.assert_allclose(answers, champion.predict(images[:count]), atol=1e-5)
        assert (ask(images.tolist()).argmax(1) == np.tile(digits.test_labels.numpy(), 3)[:1000]).mean() > 0.9
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask([[[0] * 27] * 28])
        assert refused.value.code == 400
        assert "(-1, 28, 28)" in refused.value.read().decode()
        refused.value.close()

    (tmp_path / "digits.json").write_text(json.dumps({"instances": images[:3].tolist()}))
    ask_file = ["models", "predict", "--model-uri", MODEL, "--env-manager", "local", "--content-type", "json"]
    subprocess.run(
        [sys.executable, "-m", "mlflow", *ask_file, "--input-path", "digits.json", "--output-path", "answers.json"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    answers = json.loads((tmp_path / "answers.json").read_text())["predictions"]
    np.testing.assert_allclose(answers, champion.predict(images[:3]), atol=1e-5)
