"""The endpoint `read`: pictures over HTTP, framed and answered as `predict` does."""

import asyncio
import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from drilldown.inference.reader import Answer

MAX_BYTES = 32_000_000  # of a request; base64 makes a picture a third larger
MAX_PICTURES = 64  # in one request
SEND_SECONDS = 30.0  # for the sending of a request
MAX_WAITING = 8  # requests that wait while one is answered
READ_SECONDS = 30.0  # for waiting and reading
TAKES = (
    "it takes the bytes of an image file as image/png or image/jpeg, or application/json: "
    '{"pictures": ["base64 of an image file"]}'
)


def as_json(answer: Answer) -> dict[str, Any]:
    """An answer as JSON; the frame in base64, row by row."""
    given = asdict(answer)
    given["framed"] = None if answer.framed is None else base64.b64encode(answer.framed.tobytes()).decode()
    return given


def add(app: FastAPI, read: Callable[[Sequence[bytes], bool], tuple[list[Answer], Mapping[str, object]]]) -> None:
    """Add the endpoint to an app, whose errors become one line each.

    `read` answers for image files, and reads each part where its second argument is true. It also returns what the
    response says besides, such as who answered.
    """
    one_at_a_time = ThreadPoolExecutor(max_workers=1)  # a request uses all cores
    waiting = 0

    def refuse_if_busy() -> None:
        if waiting > MAX_WAITING:
            raise HTTPException(503, f"{MAX_WAITING} requests wait to be read: try again in a moment")

    @app.post("/read")
    async def answer(request: Request, several: bool = False) -> dict[str, Any]:
        nonlocal waiting
        refuse_if_busy()  # before a large body is received
        kind, body = request.headers.get("content-type", ""), await receive(request)
        refuse_if_busy()
        waiting += 1
        try:
            async with asyncio.timeout(READ_SECONDS):  # a request that is being read is read to its end
                answers, besides = await asyncio.get_running_loop().run_in_executor(
                    one_at_a_time, lambda: read(unpack(kind, body), several)
                )
        except TimeoutError:
            raise HTTPException(503, f"the request was not read within {READ_SECONDS:.0f} s") from None
        finally:
            waiting -= 1
        return {**besides, "answers": [as_json(answer) for answer in answers]}

    @app.exception_handler(StarletteHTTPException)
    def explain(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    def explain_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = error.errors()[0]
        return JSONResponse({"error": f"{wrong['loc'][-1]} is {wrong['input']!r}: {wrong['msg']}"}, 400)


async def receive(request: Request) -> bytes:
    """The body of a request. Raises: HTTPException when it is too large, or too slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(SEND_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BYTES:
                    raise HTTPException(413, f"the request is too large: at most {MAX_BYTES:,} bytes are read")
    except TimeoutError:
        raise HTTPException(408, f"the request did not arrive within {SEND_SECONDS:.0f} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the request did not arrive") from None  # nobody reads this
    return bytes(body)


def unpack(content_type: str, body: bytes) -> list[bytes]:
    """The image files in a request. Raises: HTTPException when it holds none."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        if not body:
            raise HTTPException(400, f"the request is empty: {TAKES}")
        return [body]
    if kind != "application/json":
        raise HTTPException(415, f"Content-Type is {content_type!r}: {TAKES}")
    try:
        pictures = json.loads(body)["pictures"]
        if not isinstance(pictures, list) or not pictures:
            raise ValueError("pictures is no list, or empty")
        if len(pictures) > MAX_PICTURES:
            raise HTTPException(413, f"the request has {len(pictures)} pictures: at most {MAX_PICTURES} are read")
        # The address of a page's own picture, as `canvas.toDataURL` makes it, is taken too.
        return [base64.b64decode(picture.rpartition(",")[2], validate=True) for picture in pictures]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise HTTPException(400, f"the request cannot be read ({type(error).__name__}: {error}): {TAKES}") from None
