"""Invalid requests to the served model, and many valid ones at a time."""

import http.client
import json
import os
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor

import mlflow
import numpy as np
import pytest

from tests.support.programs import server
from tests.support.tracked import track

pytestmark = [pytest.mark.slow, pytest.mark.long]
MODEL = "models:/digits-cnn/1"
JSON = "application/json"
IMAGE = np.zeros((28, 28), int)


def instances(*images) -> str:
    return json.dumps({"instances": [np.asarray(image).tolist() for image in images]})


TAKES = ": the model takes uint8 pixel values from 0 to 255 in the shape (N, 28, 28), white on black"
SCALED = np.linspace(0, 1, 784).reshape(28, 28)
BAD = {
    "rows of 27 pixels": (instances(np.zeros((28, 27))), f"the images have the shape (1, 28, 27){TAKES}"),
    "an image outside a list": (instances(*IMAGE), f"the images have the shape (28, 28){TAKES}"),
    "an additional dimension": (instances(IMAGE[None]), f"the images have the shape (1, 1, 28, 28){TAKES}"),
    "rows of different lengths": (json.dumps({"instances": [[[0] * 28] * 27 + [[0] * 27]]}), "inhomogeneous shape"),
    "no image": (instances(), f"the images have the shape (0,){TAKES}"),
    "a number instead of images": ('{"instances": 5}', f"the images have the shape (){TAKES}"),
    "null instead of images": ('{"instances": null}', f"the images have the shape (){TAKES}"),
    "null instead of pixels": (instances(np.full((28, 28), None)), f"the pixels have the type object{TAKES}"),
    "letters instead of pixels": (instances(np.full((28, 28), "a")), f"the pixels have the type <U1{TAKES}"),
    "a pixel of 256": (instances(IMAGE + 256), f"a pixel is 256{TAKES}"),
    "a pixel of -1": (instances(IMAGE - 1), f"a pixel is -1{TAKES}"),
    "a pixel of 10**30": (instances([[10**30] * 28] * 28), f"the pixels have the type object{TAKES}"),
    "NaN": (instances(IMAGE * np.nan), f"a pixel is nan{TAKES}"),
    "infinity": (instances(IMAGE + np.inf), f"a pixel is inf{TAKES}"),
    "a scale from 0 to 1": (instances(SCALED), TAKES),
    "the same as `inputs`": (instances(SCALED).replace("instances", "inputs"), TAKES),
    "the same, cut to whole numbers": (
        instances(SCALED.astype(int)),
        f"the highest pixel is 1, as on a scale from 0 to 1{TAKES}",
    ),
    "fractions": (instances(SCALED * 255), TAKES),
    "an image with a name": (
        json.dumps({"inputs": {"image": [IMAGE.tolist()]}}),
        f"the images have the shape (){TAKES}",
    ),
    "a table": ('{"dataframe_records": [{"pixel": 1}]}', f"the images have the shape (1, 1){TAKES}"),
    "no field": ("{}", "exactly one of the input fields"),
    "a missing field": (json.dumps({"images": [IMAGE.tolist()]}), "exactly one of the input fields"),
    "two fields": (json.dumps({"instances": [], "inputs": []}), "exactly one of the input fields"),
    "a list": (json.dumps([IMAGE.tolist()]), "Received a list"),
    "an empty body": ("", "valid JSON"),
    "broken JSON": (instances(IMAGE)[:-1], "valid JSON"),
    "bytes that are not text": (b"\xff\xfe\x00", "valid JSON"),
}


@pytest.fixture(scope="module")
def model(empty_database, tmp_path_factory, trained, digits):
    """The small network, registered in a store of this module."""
    folder = tmp_path_factory.mktemp("served")
    uri = f"sqlite:///{shutil.copy(empty_database, folder)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        _, _, model, _ = track(trained, digits)
        mlflow.register_model(model.model_uri, "digits-cnn")
        yield mlflow.pyfunc.load_model(MODEL)


@pytest.fixture(scope="module")
def port(model):
    """The port on which the model is served."""
    with server(["mlflow", "models", "serve", "--model-uri", MODEL, "--env-manager", "local"], os.environ) as port:
        yield port


def ask(port, body, kind=JSON, method="POST"):
    """Send a request; return the status and the text of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(method, "/invocations", body, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def serves(port) -> bool:
    status, text = ask(port, instances(IMAGE))
    return status == 200 and np.shape(json.loads(text)["predictions"]) == (1, 10)


@pytest.mark.fault(
    "invalid request",
    "wrong shape, type, scale, range, NaN, field, JSON",
    "a 4xx answer that says what is wrong; the server keeps serving",
)
def test_invalid_requests(port, record_property):
    for name, (body, message) in BAD.items():
        status, text = ask(port, body)
        assert (name, status, message in text) == (name, 400, True), text
        if message.endswith(TAKES):
            assert json.loads(text)["message"].endswith(message)
            assert len(json.loads(text)["message"].splitlines()) == 1
        assert serves(port)
    record_property("times", len(BAD))


@pytest.mark.fault(
    "request of another kind",
    "GET, CSV, Parquet, text, another character set",
    "a 4xx answer that says what is wrong; the server keeps serving",
)
def test_requests_of_another_kind(port, record_property):
    kinds = {
        "text/csv": (400, TAKES),
        "application/vnd.apache.parquet": (400, "Failed to parse input as a Pandas DataFrame"),
        "text/plain": (415, "only supports the following content types"),
        f"{JSON}; charset=latin-1": (415, "only supports UTF-8"),
        f"{JSON}; version=2": (415, "Unrecognized content type parameters: version"),
    }
    for kind, (expected, message) in kinds.items():
        status, text = ask(port, instances(IMAGE), kind)
        assert (kind, status, message in text) == (kind, expected, True), text
        assert serves(port)
    assert ask(port, None, method="GET")[0] == 405
    record_property("times", len(kinds) + 1)


@pytest.mark.fault(
    "request that MLflow's server does not handle",
    "no content type, JSON 100,000 levels deep, a number of 5,000 digits, an interrupted body",
    "an error answer (MLflow's own 500); the server keeps serving",
)
def test_requests_that_mlflow_does_not_handle(port, record_property):
    # MLflow does not catch what json raises besides JSONDecodeError (RecursionError, ValueError), nor the error of a
    # missing header; no code of the model runs before. So only this is promised: the server survives.
    bodies = [(instances(IMAGE), None), ("[" * 100_000, JSON), ('{"instances": %s}' % ("9" * 5000), JSON)]
    for body, kind in bodies:
        assert ask(port, body, kind)[0] >= 400
        assert serves(port)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            b"POST /invocations HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
    assert serves(port)
    record_property("times", len(bodies) + 1)


@pytest.mark.fault("request body of 100 MB", "text instead of images", "a 4xx answer; the server keeps serving")
def test_large_body(port):
    status, text = ask(port, '{"instances": "%s"}' % ("x" * 100_000_000))
    assert (status, TAKES in text) == (400, True)
    assert serves(port)


@pytest.mark.fault("200 requests from 16 clients", "concurrent", "each client gets its own answers")
def test_concurrent_clients(port, model, digits, record_property):
    images = digits.test_images.numpy()[:200]
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda image: ask(port, instances(image)), images))
    assert {status for status, _ in answers} == {200}
    probabilities = np.concatenate([json.loads(text)["predictions"] for _, text in answers])
    np.testing.assert_allclose(probabilities, model.predict(images), atol=1e-5)
    record_property("times", len(images))


def test_whole_numbers_and_blank_images_are_answered(port, model, digits):
    images = digits.test_images.numpy()[:3]
    for field in ("instances", "inputs"):
        for kind in (int, float):
            status, text = ask(port, json.dumps({field: images.astype(kind).tolist()}))
            assert status == 200
            np.testing.assert_allclose(json.loads(text)["predictions"], model.predict(images), atol=1e-6)
    assert ask(port, instances(IMAGE, IMAGE * 1.0))[0] == 200
