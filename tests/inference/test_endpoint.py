"""The served model answers for pictures as the reader does, and beside MLflow's own endpoint."""

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import uvicorn
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from PIL import Image

from drilldown.inference import endpoint, serving
from drilldown.inference.reader import Reader
from drilldown.learning.calibration import Calibration
from drilldown.steps import ROOT
from tests.support.pictures import Brightest, digit, on_canvas
from tests.support.programs import free_port


class Calibrated(Brightest):
    metadata = Model(
        metadata={"calibration": Calibration(0.5, 0.5).as_metadata()},
        signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, 28, 28))])),
    )


@pytest.fixture(scope="module")
def address():
    """The address of a server of that model."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(serving.predict, "load", lambda uri: (Calibrated(), {}))
        app = serving.create_app("models:/m")
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def ask(address: str, body: bytes, kind: str, path: str = "/read") -> tuple[int, dict]:
    """The status and the answer."""
    request = urllib.request.Request(address + path, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_it_agrees_with_the_reader_picture_by_picture(address, tmp_path, digits):
    files = sorted((ROOT / "docs" / "digits").glob("*.png"))
    for number in range(6):
        files.append(tmp_path / f"{number}.jpg")
        on_canvas(255 - digit(digits, number), zoom=2, background=255).save(files[-1])
    Image.new("L", (60, 60), 255).save(tmp_path / "blank.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    files += [tmp_path / "blank.png", tmp_path / "broken.png"]
    answers = [endpoint.as_json(answer) for answer in Reader(Calibrated()).read([file.read_bytes() for file in files])]
    assert {answer["unsure"] for answer in answers} == {True, False}
    assert sum(answer["refusal"] is not None for answer in answers) == 2
    for file, expected in zip(files, answers, strict=True):
        status, got = ask(address, file.read_bytes(), f"image/{file.suffix[1:]}")
        assert status == 200
        assert got["answers"] == [json.loads(json.dumps({**expected, "source": "picture 1"}))]
    body = json.dumps({"pictures": [base64.b64encode(file.read_bytes()).decode() for file in files]}).encode()
    assert ask(address, body, "application/json; charset=utf-8") == (200, json.loads(json.dumps({"answers": answers})))


def test_several_digits_on_request(address, digits):
    page = Image.new("L", (300, 120), 0)
    for place, number in enumerate((4, 7)):
        page.paste(on_canvas(digit(digits, number), size=(84, 84), at=(0, 0), zoom=3), (30 + 120 * place, 18))
    body = json.dumps({"pictures": [png(page)]}).encode()
    ((refused,),) = ask(address, body, "application/json")[1].values()
    assert refused["refusal"] == "more than one digit: 2 parts"
    ((first, second),) = ask(address, body, "application/json", "/read?several=true")[1].values()
    assert (first["part"], second["part"]) == (1, 2)
    assert first["digit"] == second["digit"] == 7


def png(picture: Image.Image) -> str:
    """The picture as a page gives it: the address of a PNG file in base64."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("body", "kind", "status", "complaint"),
    [
        (b"", "image/png", 400, "the request is empty"),
        (b"0" * (endpoint.MAX_BYTES + 1), "image/png", 413, "at most 32,000,000 bytes are read"),
        (b"a,b", "text/csv", 415, "Content-Type is 'text/csv': it takes the bytes of an image file"),
        (b"{", "application/json", 400, "the request cannot be read (JSONDecodeError"),
        (b"[1]", "application/json", 400, "the request cannot be read (TypeError"),
        (b'{"picture": "aGk="}', "application/json", 400, "KeyError: 'pictures'"),
        (b'{"pictures": []}', "application/json", 400, "pictures is no list, or empty"),
        (b'{"pictures": [7]}', "application/json", 400, "the request cannot be read (AttributeError"),
        (b'{"pictures": ["%"]}', "application/json", 400, "the request cannot be read (Error"),
        (json.dumps({"pictures": ["aGk="] * 65}).encode(), "application/json", 413, "has 65 pictures: at most 64"),
    ],
)
def test_a_bad_request_is_answered_in_one_line(address, body, kind, status, complaint):
    found, answer = ask(address, body, kind)
    assert found == status
    assert list(answer) == ["error"]
    assert complaint in answer["error"]
    assert "\n" not in answer["error"]


def test_mlflows_own_endpoint_stays(address, digits):
    images = digits.test_images[:3].numpy()
    body = json.dumps({"instances": images.tolist()}).encode()
    status, answer = ask(address, body, "application/json", "/invocations")
    assert status == 200
    np.testing.assert_allclose(answer["predictions"], Brightest().predict(images), rtol=1e-5)


def test_a_wrong_parameter_is_one_line(address):
    status, answer = ask(address, b"", "image/png", "/read?several=maybe")
    assert status == 400
    assert answer["error"].startswith("several is 'maybe': Input should be a valid boolean")
