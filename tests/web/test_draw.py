"""The page to draw on, in a real browser: drawn with mouse, pen, finger and keys, and read by a champion of MNIST.

One server and one browser serve the whole module. The tests run in order: the last ones end the server.
"""

import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from PIL import Image
from playwright.sync_api import expect

from drilldown.inference import endpoint, predict
from drilldown.inference.reader import Reader
from drilldown.learning import train
from drilldown.steps import ROOT, load_step
from drilldown.tracking.tags import ours
from tests.support import registered
from tests.support.browser import draw, lines, needs_chromium, start_browser
from tests.support.programs import free_port, wait_for
from tests.support.tracked import track
from tests.test_cli import refused

pytestmark = [pytest.mark.slow, pytest.mark.mnist, needs_chromium]
NAME = "mnist-cnn"
PHOTO = ROOT / "docs" / "digits" / "two.png"
SECONDS = 20_000  # milliseconds that a page may take
expect.set_options(timeout=SECONDS)


@pytest.fixture(scope="module")
def champion(project, mnist):
    """Step 4, trained for a moment on a sixth of MNIST: version 1 of the project's store. Version 2 is a copy of it."""
    step = load_step("step4")
    small = replace(
        mnist,
        train_images=mnist.train_images[:10_000],
        train_labels=mnist.train_labels[:10_000],
        test_images=mnist.test_images[:1_000],
        test_labels=mnist.test_labels[:1_000],
    )
    state = train.init_state(step.network(), replace(step.recipe, epochs=2), small, 0, train.prepare(0, "cpu"))
    for _ in train.fit(state, replace(step.recipe, epochs=2), small):
        pass
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        patch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
        mlflow.set_tracking_uri(project.tracking_uri)
        registered.verify_in_process(patch)
        assert registered.register(track(state, small), small).champion
        client = mlflow.MlflowClient()
        first = client.get_model_version(NAME, "1")
        client.create_model_version(NAME, first.source, first.run_id, tags=first.tags)
        yield Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1"))


@pytest.fixture(scope="module")
def port():
    return free_port()


@pytest.fixture(scope="module")
def drawing(project, champion, port):
    """The program that serves the page."""
    command = project.start("python", "-m", "drilldown", "draw", "--port", str(port), stdout=subprocess.PIPE)
    wait_for(port, command)
    yield command
    command.kill()


@pytest.fixture(scope="module")
def browser(drawing):
    with start_browser() as started:
        yield started


@pytest.fixture
def page(browser, port):
    """The page in a window of its own; an error in it fails the test."""
    with opened(browser, port) as (found, errors):
        yield found
    assert errors == []


@contextmanager
def opened(browser, port, **settings):
    """Open the page, wait for the model's version, and collect the errors of its scripts and the foreign addresses."""
    context = browser.new_context(**settings)
    context.set_default_timeout(SECONDS)
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    own = f"http://127.0.0.1:{port}/"
    page.on("request", lambda request: None if request.url.startswith(own) else errors.append(request.url))
    page.goto(own)
    expect(page.locator("#model")).to_have_text(re.compile(f"^{NAME} version . answers$"))
    yield page, errors
    page.unroute_all(behavior="wait")  # a picture may be on its way
    context.close()


def expect_digit(page, digit):
    expect(page.locator("#digit")).to_have_text(str(digit))


def ask(port, picture=None, **headers):
    """Send bytes, or only look; returns the status and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        given = {"Content-Type": "image/png"} | headers
        connection.request("GET" if picture is None else "POST", "/read", picture, given)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def png(size):
    """A picture of a two, of that many pixels each side."""
    stream = io.BytesIO()
    Image.open(PHOTO).convert("L").resize((size, size)).save(stream, "PNG")
    return stream.getvalue()


def test_each_digit_is_recognized(page):
    for digit in range(10):
        page.get_by_role("button", name="Clear").click(force=True)
        draw(page, digit)
        expect_digit(page, digit)
        expect(page.locator("#bars .first .name")).to_have_text(str(digit))
    expect(page.get_by_role("status")).to_contain_text("9")  # read aloud, once it has settled
    shares = page.locator(".bar").evaluate_all("(bars) => bars.map((bar) => +bar.style.getPropertyValue('--share'))")
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    seen = page.evaluate("[...document.getElementById('seen').getContext('2d').getImageData(0, 0, 28, 28).data]")
    assert max(seen[::4]) == 255  # what the model saw
    assert seen[0] == 0


def test_the_bars_follow_while_one_draws(page):
    (line,) = lines(page, 6)
    page.mouse.move(*line[0])
    page.mouse.down()
    for point in line[1:8]:
        page.mouse.move(*point)
    expect(page.locator("#bars .first")).to_have_count(1)
    before = page.locator("#bars").inner_text()
    for point in line[8:]:
        page.mouse.move(*point)
    expect_digit(page, 6)
    assert page.locator("#bars").inner_text() != before
    page.mouse.up()


def test_a_pen(page):
    tablet = page.context.new_cdp_session(page)
    for line in lines(page, 4):
        kinds = ["mousePressed", *["mouseMoved"] * (len(line) - 2), "mouseReleased"]
        for kind, (x, y) in zip(kinds, line, strict=True):
            event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "pointerType": "pen"}
            tablet.send("Input.dispatchMouseEvent", event | {"clickCount": int(kind != "mouseMoved")})
    expect_digit(page, 4)


def test_nothing_is_drawn(page):
    expect(page.locator("#words")).to_have_text("Nothing is drawn yet")
    expect(page.get_by_role("button", name="Clear")).to_be_disabled()
    draw(page, 7)
    expect_digit(page, 7)
    page.keyboard.press("Control+z")  # both strokes of the seven
    page.keyboard.press("Control+z")
    expect(page.locator("#words")).to_have_text("Nothing is drawn yet")
    assert set(page.locator(".value").all_inner_texts()) == {"–"}


def test_a_finger_in_the_dark_on_a_phone(browser, port):
    phone = {"viewport": {"width": 375, "height": 700}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
    with opened(browser, port, **phone) as (page, errors):
        touch = page.context.new_cdp_session(page)
        for line in lines(page, 3):
            touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point(*line[0])]})
            for place in line[1:]:
                touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point(*place)]})
            touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        expect_digit(page, 3)
        assert page.evaluate("scrollY") == 0  # the finger draws, it does not scroll
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        bars = page.locator("#bars").bounding_box()
        assert bars["y"] + bars["height"] <= 700  # in sight while one draws
        dark = page.locator("#paper").evaluate("(paper) => getComputedStyle(paper).backgroundColor")
        assert max(map(int, re.findall(r"\d+", dark))) < 64
        assert errors == []


def point(x, y):
    return {"x": x, "y": y}


def test_keys_alone(page):
    page.keyboard.press("Tab")
    paper = page.get_by_role("application", name="Paper to draw a digit on")
    expect(paper).to_be_focused()
    for key in ("ArrowUp",) * 6 + (" ",) + ("ArrowDown",) * 12 + (" ",):
        page.keyboard.press(key)
    expect_digit(page, 1)
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Undo")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # Clear
    expect(page.locator("#words")).to_have_text("Nothing is drawn yet")
    expect(paper).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Photo…")).to_be_focused()


def test_a_photo_is_read_as_predict_reads_it(page, port, champion):
    page.get_by_label("Photo…").set_input_files(PHOTO)
    expect_digit(page, 2)
    model, _ = predict.load(f"models:/{NAME}@champion")
    (wanted,) = Reader(model).read([PHOTO])
    status, found = ask(port, PHOTO.read_bytes())
    (answer,) = found["answers"]
    assert (status, answer["digit"], answer["refusal"]) == (200, 2, None)
    assert found["model"] == {"name": NAME, "version": "1"}
    assert answer["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-6)
    assert base64.b64decode(answer["framed"]) == wanted.framed.tobytes()


def test_a_photo_is_pasted_and_dropped(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async (bytes) => {
          const picture = new Blob([Uint8Array.from(bytes)], { type: "image/png" });
          await navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
        }""",
        list(png(200)),
    )
    page.keyboard.press("Control+v")
    expect_digit(page, 2)
    draw(page, 7)  # instead of the photo
    expect_digit(page, 7)
    carried = page.evaluate_handle(
        """(bytes) => {
          const carried = new DataTransfer();
          carried.items.add(new File([Uint8Array.from(bytes)], "two.png", { type: "image/png" }));
          return carried;
        }""",
        list(png(200)),
    )
    page.locator("#paper").dispatch_event("drop", {"dataTransfer": carried})
    expect_digit(page, 2)


def test_refusals_are_said_in_words(page, tmp_path):
    photo = page.get_by_label("Photo…")
    photo.set_input_files({"name": "notes.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(page.locator("#words")).to_contain_text("annot identify image file")
    expect(page.locator("#answer")).to_have_class("refused")
    expect(page.locator("#bars .first")).to_have_count(0)
    expect(page.locator("#hint")).to_have_text("notes.png")  # as there is no picture to show
    with (tmp_path / "large.png").open("wb") as large:
        large.truncate(40_000_000)
    photo.set_input_files(tmp_path / "large.png")
    expect(page.get_by_role("alert")).to_have_text("large.png has 40 MB: at most 32 MB are read.")


def test_an_unsure_answer_is_said_in_words(page):
    def doubt(route):
        answered = route.fetch()
        given = answered.json()
        for answer in given.get("answers", ()):
            answer["unsure"] = True
        route.fulfill(response=answered, json=given)

    page.route("**/read", doubt)
    draw(page, 7)
    expect(page.locator("#words")).to_have_text(re.compile(r"^Unsure: 7 \(.*\), or perhaps \d \(.*\)$"))
    expect(page.locator("#answer")).to_have_class("unsure")
    expect_digit(page, 7)


def test_requests_are_bounded(drawing, port):
    status, answer = ask(port, bytes(endpoint.MAX_BYTES + 1))
    assert (status, answer["error"]) == (413, "the request is too large: at most 32,000,000 bytes are read")
    large = png(4000)
    with ThreadPoolExecutor(24) as clients:
        statuses = [status for status, _ in clients.map(lambda _: ask(port, large), range(24))]
    assert set(statuses) == {200, 503}
    assert ask(port, png(100))[0] == 200


def test_other_sites_are_refused(drawing, port):
    foreign = [
        {"Host": "evil.example"},  # a name that leads here: DNS rebinding
        {"Host": f"evil.example:{port}"},
        {"Host": ""},
    ]
    for headers in foreign:
        status, answer = ask(port, **headers)
        assert (status, "it takes an IP address, or 127.0.0.1, localhost" in answer["error"]) == (403, True)
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        status, answer = ask(port, b"", **headers)
        assert (status, "only this server's own page may send pictures" in answer["error"]) == (403, True)
    for host in ("localhost", f"localhost:{port}", f"[::1]:{port}", "127.0.0.1"):
        assert ask(port, Host=host)[0] == 200
        assert ask(port, png(100), Host=host, Origin=f"http://{host}")[0] == 200


def test_the_champion_changes(page, champion):
    draw(page, 8)
    expect_digit(page, 8)
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", "2")
    expect(page.locator("#model")).to_have_text(f"{NAME} version 2 answers")  # without a touch
    expect(page.get_by_role("status")).to_have_text(re.compile("version 2 answers"))
    expect_digit(page, 8)


def test_an_altered_champion_answers_nothing(browser, port, champion):
    exported = champion / "data" / "model.pt2"
    kept = exported.read_bytes()
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", "2")
    with opened(browser, port) as (page, _):
        draw(page, 5)
        expect_digit(page, 5)
        exported.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        try:
            mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", "1")
            altered = f"{NAME} version 1 was altered: the SHA-256 of its files is"
            expect(page.get_by_role("alert")).to_contain_text(altered)
            expect(page.locator("#words")).to_have_text("No answer")
            assert set(page.locator(".value").all_inner_texts()) == {"–"}
            assert ask(port, png(100))[0] == 503
        finally:
            exported.write_bytes(kept)
        expect(page.locator("#model")).to_have_text(f"{NAME} version 1 answers")
        expect_digit(page, 5)  # what was drawn is still there
        expect(page.get_by_role("alert")).to_be_hidden()
        mlflow.MlflowClient().delete_registered_model_alias(NAME, "champion")
        expect(page.get_by_role("alert")).to_have_text(f"{NAME} has no champion")
        mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", "1")
        expect_digit(page, 5)


def test_the_server_ends_and_comes_back(browser, project, drawing, port):
    """Ctrl-C ends it in order; `mlflow run` starts it again; the page goes on where it was."""
    with opened(browser, port) as (page, _):
        draw(page, 0)
        expect_digit(page, 0)
        os.killpg(drawing.pid, signal.SIGINT)
        output, _ = drawing.communicate(timeout=30)
        assert drawing.returncode == 0
        address = f"http://127.0.0.1:{port}"
        assert output == f"draw on {address} until Ctrl-C; {NAME} version 1 answers\n"
        silence = "The server does not answer. Your drawing stays, and the page keeps trying."
        expect(page.get_by_role("alert")).to_have_text(silence)
        page.get_by_role("button", name="Clear").click()
        draw(page, 1)
        expect(page.locator("#words")).to_have_text("No answer")
        again = project.start("mlflow", "run", ".", "-e", "draw", "--env-manager", "local", "-P", f"port={port}")
        wait_for(port, again)
        expect(page.get_by_role("alert")).to_be_hidden()
        expect_digit(page, 1)
        # Only the server: upon Ctrl-C, `mlflow run` itself calls every run FAILED once its program has ended.
        os.kill(int(Path(f"/proc/{again.pid}/task/{again.pid}/children").read_text()), signal.SIGINT)
        assert again.wait(timeout=60) == 0
    run = project.runs()[0]
    assert (run.info.run_name, run.info.status, ours(run.data.tags)["kind"]) == ("draw", "FINISHED", "draw")
    assert "error" not in ours(run.data.tags)


def test_what_cannot_be_served_is_said_in_one_line(champion, capsys):
    code, line = refused(capsys, "draw", "--model", "digits-cnn")
    assert code == 1
    assert line == (
        f"digits-cnn has no champion; {NAME} has one: python -m drilldown draw --model {NAME}; to train one: "
        "python -m drilldown step4 --dataset digits"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refused(capsys, "draw", "--port", str(port))
        assert (code, line) == (2, f"port is {port}: it takes one that is free on 127.0.0.1 (Address already in use)")
    for host in ("203.0.113.1", "nowhere.invalid"):
        code, line = refused(capsys, "draw", "--host", host)
        assert (code, line.partition(" (")[0]) == (2, f"host is {host!r}: it takes an address of this machine")
    with (champion / "MLmodel").open("a") as description:
        description.write("# altered")
    code, line = refused(capsys, "draw")
    assert (code, f"{NAME} version 1 was altered" in line) == (1, True)
