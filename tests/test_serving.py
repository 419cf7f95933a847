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
from click.testing import CliRunner
from mlflow.models.cli import generate_dockerfile

from drilldown.registry import registry
from drilldown.tracking import export
from tests.support import warm
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


# Only what the model's requirements bring along can be imported, as in an environment that is made for it.
IN_ITS_ENVIRONMENT = """
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions, requires
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pathlib import Path

folder = Path(sys.argv[1])
installed, new = set(), {Requirement(line).name for line in (folder / "requirements.txt").read_text().splitlines()}
while new:
    installed |= {canonicalize_name(name) for name in new}
    needed = [Requirement(line) for name in new for line in requires(name) or ()]
    new = {need.name for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})}
    new = {name for name in new if canonicalize_name(name) not in installed}
of_module = {
    module: {canonicalize_name(name) for name in names} for module, names in packages_distributions().items()
}

class Environment(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        inside = not of_module.get(name.partition(".")[0], installed).isdisjoint(installed)
        return super().find_spec(name, path, target) if inside else None

sys.meta_path[sys.meta_path.index(PathFinder)] = Environment
import mlflow.pyfunc
import numpy
print(mlflow.pyfunc.load_model(str(folder)).predict(numpy.zeros((1, 28, 28), numpy.uint8)).shape)
import torchvision
"""


def test_a_dockerfile_comes_with_a_model_whose_requirements_are_enough(store, trained, digits, tmp_path):
    uri = track(trained, digits)[2].model_uri
    image = tmp_path / "image"
    arguments = ["--model-uri", uri, "--output-directory", str(image)]
    assert CliRunner().invoke(generate_dockerfile, arguments, catch_exceptions=False).exit_code == 0
    assert "COPY model_dir /opt/ml/model" in (image / "Dockerfile").read_text()
    assert (image / "model_dir" / "requirements.txt").read_text().splitlines() == export.model_requirements()
    answer = [sys.executable, "-I", "-c", IN_ITS_ENVIRONMENT, image / "model_dir"]
    done = subprocess.run(answer, capture_output=True, text=True)
    assert done.stdout == "(1, 10)\n", done.stderr
    assert done.stderr.endswith("No module named 'torchvision'\n")


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
        assert "the shape (1, 28, 27)" in refused.value.read().decode()
        refused.value.close()

    (tmp_path / "digits.json").write_text(json.dumps({"instances": images[:3].tolist()}))
    ask_file = ["models", "predict", "--model-uri", MODEL, "--env-manager", "local", "--content-type", "json"]
    subprocess.run(
        [warm.python(), "-m", "mlflow", *ask_file, "--input-path", "digits.json", "--output-path", "answers.json"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    answers = json.loads((tmp_path / "answers.json").read_text())["predictions"]
    np.testing.assert_allclose(answers, champion.predict(images[:3]), atol=1e-5)
