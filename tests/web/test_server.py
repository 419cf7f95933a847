"""The bounds of the page's server, and who may ask it, without a network."""

import asyncio
import json
import socket
import time

import pytest

from drilldown.errors import ParameterError, PredictError
from drilldown.inference import endpoint, http
from drilldown.inference.current import Champion
from drilldown.inference.reader import Answer
from drilldown.web import server
from drilldown.web.gatekeeper import Gatekeeper, host_name, is_address
from tests.support.programs import free_port

PNG = ((b"content-type", b"image/png"), (b"host", b"127.0.0.1"))


class Reads:
    """A champion that takes its time to read."""

    names = tuple("0123456789")

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def get(self) -> Champion:
        return Champion("mnist-cnn", "7", {False: self, True: self})

    def read(self, pictures):
        time.sleep(self.seconds)
        return [Answer("picture", refusal="it is slow") for _ in pictures]


async def ask(app, parts=(b"picture",), *, seconds=0.0, headers=PNG):
    """Send the parts of a body, with a pause before the last; returns the status, the headers and the answer."""
    sent = [{"type": "http.request", "body": part, "more_body": True} for part in parts[:-1]]
    sent.append({"type": "http.request", "body": parts[-1], "more_body": False})
    got = []

    async def receive():
        if len(sent) == 1:
            await asyncio.sleep(seconds)
        return sent.pop(0) if sent else {"type": "http.disconnect"}

    async def send(message):
        got.append(message)

    await app(
        {"type": "http", "method": "POST", "path": "/read", "query_string": b"", "headers": headers}, receive, send
    )
    body = b"".join(message.get("body", b"") for message in got[1:])
    return got[0]["status"], dict(got[0]["headers"]), json.loads(body)


def test_the_answer_says_who_answered_and_the_page_takes_nothing_from_elsewhere():
    status, headers, answer = asyncio.run(ask(server.create_app(Reads())))
    assert (status, answer["model"]) == (200, {"name": "mnist-cnn", "version": "7"})
    assert answer["answers"][0]["refusal"] == "it is slow"
    assert b"default-src 'none'" in headers[b"content-security-policy"]
    assert b"unsafe" not in headers[b"content-security-policy"]
    assert not [name for name in headers if name.startswith(b"access-control")]  # for no other site


@pytest.mark.slow
def test_only_so_many_wait(monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_WAITING", 2)
    app = server.create_app(Reads(0.2))

    async def many():
        return await asyncio.gather(*(ask(app) for _ in range(5)))

    answers = asyncio.run(many())
    assert sorted(status for status, *_ in answers) == [200, 200, 200, 503, 503]
    refusals = {answer["error"] for status, _, answer in answers if status == 503}
    assert refusals == {"2 requests wait to be read: try again in a moment"}
    assert asyncio.run(ask(server.create_app(Reads())))[0] == 200


def test_time_is_bounded(monkeypatch):
    monkeypatch.setattr(endpoint, "READ_SECONDS", 0.05)
    monkeypatch.setattr(endpoint, "SEND_SECONDS", 0.05)
    status, _, answer = asyncio.run(ask(server.create_app(Reads(0.3))))
    assert (status, "the request was not read within" in answer["error"]) == (503, True)
    status, _, answer = asyncio.run(ask(server.create_app(Reads()), (b"pic", b"ture"), seconds=0.3))
    assert (status, "the request did not arrive within" in answer["error"]) == (408, True)


def test_size_is_bounded(monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_BYTES", 10)
    status, _, answer = asyncio.run(ask(server.create_app(Reads()), (b"123456", b"78901")))
    assert (status, answer["error"]) == (413, "the request is too large: at most 10 bytes are read")


def test_no_champion_is_said():
    class Gone(Reads):
        def get(self):
            raise PredictError("mnist-cnn has no champion")

    status, _, answer = asyncio.run(ask(server.create_app(Gone())))
    assert (status, answer) == (503, {"error": "mnist-cnn has no champion"})


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1:5004", "127.0.0.1"),
        ("[::1]:5004", "::1"),
        ("LocalHost", "localhost"),
        ("evil.example:80", "evil.example"),
        ("", ""),
    ],
)
def test_names_in_host_headers(host, name):
    assert host_name(host) == name
    assert is_address(name) == (name in ("127.0.0.1", "::1"))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "draw.example"}, 200),  # the name that the user gave
        ({"host": "draw.example.evil.example"}, 403),
        ({"host": "127.0.0.1", "origin": "http://127.0.0.1"}, 200),
        ({"host": "127.0.0.1:5004", "origin": "http://127.0.0.1:5005"}, 403),
        ({"host": "127.0.0.1", "origin": "null"}, 403),
        ({"host": "127.0.0.1", "sec-fetch-site": "same-site"}, 403),
        ({"host": "127.0.0.1", "sec-fetch-site": "none"}, 200),
        ({}, 403),
    ],
)
def test_who_may_ask(headers, status):
    app = server.create_app(Reads(), "draw.example")
    given = [(name.encode(), value.encode()) for name, value in (headers | {"content-type": "image/png"}).items()]
    assert asyncio.run(ask(app, headers=given))[0] == status
    assert Gatekeeper(app, ["Draw.example"]).names == {"draw.example"}


@pytest.mark.parametrize(
    ("host", "shown", "is_local"),
    [("127.0.0.1", "127.0.0.1", True), ("localhost", "localhost", True), ("0.0.0.0", socket.gethostname(), False)],
)
def test_the_address_that_is_shown(host, shown, is_local):
    port = free_port()
    with http.listen(host, port) as listening:
        assert server.page_address(listening, host) == f"http://{shown}:{port}"
        assert server.is_local(listening) == is_local


@pytest.mark.parametrize("host", [".x", "a" * 70, "203.0.113.1"])  # two that are no names, and a machine elsewhere
def test_a_host_that_is_not_this_machines_is_one_line(host):
    with pytest.raises(ParameterError, match="^host is '.*': it takes an address of this machine "):
        http.listen(host, free_port())
