"""The service and requests that are too large, too slow, malformed or not allowed."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from image_samples import png16
from service_client import RecordingPredictor, ServiceClient, form, png

from maskrcnn.service.batch_queue import BatchQueue
from maskrcnn.service.gate import _pieces
from maskrcnn.service.prediction_json import ImageResponse, ResponseOptions, prediction_json
from maskrcnn.service.service_error import ServiceError
from maskrcnn.service.service_settings import ServiceSettings
from maskrcnn.service.upload import BodyReader, ReceivedImage

Start = Callable[..., ServiceClient]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[ServiceClient] = []

    def start_one(**settings: Any) -> ServiceClient:
        seconds = settings.pop("seconds", 0.0)
        started.append(ServiceClient(RecordingPredictor(seconds), **settings))
        return started[-1]

    yield start_one
    for client in started:
        client.close()


@pytest.fixture(scope="module")
def client() -> Iterator[ServiceClient]:
    """A service with small limits."""
    client = ServiceClient(RecordingPredictor(), max_bytes=100_000, max_pixels=10_000, max_files=3)
    yield client
    client.close()


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return response.json()["error"]


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG whose header claims many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_a_bomb_is_refused_by_its_header(client: ServiceClient):
    error = error_of(client.post(**form(bomb())), 413)
    assert error["message"].startswith("0.png: 60,000 x 60,000 pixels are more than the limit")
    assert error["limit"] == {"name": "max_pixels", "value": 10_000, "flag": "--max-pixels"}


@pytest.mark.parametrize("length", [{}, {"Content-Length": "100001"}])
def test_a_large_body_is_refused_announced_or_not(client: ServiceClient, length: dict[str, str]):
    async def body() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield bytes(10_000)

    response = client.post(content=body(), headers={"Content-Type": "image/png", **length})
    assert error_of(response, 413)["limit"]["name"] == "max_bytes"


def test_too_many_files_are_refused(client: ServiceClient):
    assert error_of(client.post(**form(*[png((40, 40))] * 4)), 413)["limit"]["value"] == 3
    text = base64.b64encode(png((40, 40))).decode()
    response = client.post(json={"images": [{"data": text}] * 4})
    assert error_of(response, 413)["code"] == "too_many_files"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"%PDF-1.7", "PDF"),
        (png()[:500], "truncated"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "0.png: cannot be read as an image"),
        (b"http://127.0.0.1/secret.png", "0.png: cannot be read as an image"),
        (b"/etc/passwd", "0.png: cannot be read as an image"),
        (b'{"annotations": []}', "an annotation file"),
        (b"a.png", "a list of images"),
        (png16(np.array([[0, 200]], np.uint16)), "start the server with --intensity-range"),
    ],
)
def test_what_is_no_image_is_unreadable(client: ServiceClient, data: bytes, reason: str):
    message = error_of(client.post(**form(data)), 422)["message"]
    assert reason in message
    assert "maskrcnn" not in message


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(client: ServiceClient):
    jpeg = png(format="JPEG", progressive=True)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    assert client.post(**form(jpeg)).status_code == 200
    error = error_of(client.post(**form(jpeg[:-2] + 3000 * last[:12] + jpeg[-2:])), 422)
    assert "at most 200 scans, got 3,0" in error["message"]


def test_an_unreadable_image_among_others_is_named(client: ServiceClient):
    assert error_of(client.post(**form(png(), b"x")), 422)["message"].startswith("1.png: ")


def multipart(*parts: bytes, end: bytes = b"--b--\r\n") -> dict[str, Any]:
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end
    return {"content": body, "headers": {"Content-Type": "multipart/form-data; boundary=b"}}


DISPOSITION = b'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (multipart(), "expected at least one image"),
        (multipart(DISPOSITION + png(), end=b""), "truncated"),
        (multipart(b"no header"), "malformed form"),
        (multipart(b"\r\n" + png()), "expected \"files\""),
        (multipart(b'Content-Disposition: form-data; name="image"\r\n\r\nx'), "form field 'image'"),
        (multipart(b"X: " + b"y" * 20_000 + b"\r\n\r\n"), "malformed form"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, "boundary"),
        (
            {"content": b"x", "headers": {"Content-Type": f"multipart/form-data; boundary={'b' * 900}"}},
            "malformed form",
        ),
        ({"json": {}}, '{"images": [{"data": base64}]}'),
        ({"json": []}, '{"images": [{"data": base64}]}'),
        ({"json": {"images": []}}, "expected at least one image"),
        ({"json": {"images": [{}]}}, "images[0]"),
        ({"json": {"images": [{"data": 3}]}}, "images[0]"),
        ({"json": {"images": [{"data": "@@@"}]}}, "images[0].data: expected base64"),
        ({"json": {"images": [{"data": "http://x/a.png"}]}}, "URLs are not fetched"),
        ({"json": {"images": [{"data": "", "name": 3}]}}, "images[0].name"),
        ({"json": {"images": [{"data": "", "url": "x"}]}}, "unexpected keys: 'url'"),
        ({"json": {"images": [], "min_score": 1}}, "unexpected keys: 'min_score'"),
        ({"content": b"[" * 50_000, "headers": {"Content-Type": "application/json"}}, "nothing else"),
        ({"content": b"[" * 200, "headers": {"Content-Type": "application/json"}}, "nested"),
        ({"content": b'{"a": 1', "headers": {"Content-Type": "application/json"}}, "not valid JSON"),
        ({"content": b"\xff\xfe\x00", "headers": {"Content-Type": "application/json"}}, "JSON"),
    ],
)  # fmt: skip
def test_malformed_requests_are_explained(
    client: ServiceClient, request_: dict[str, Any], reason: str
):
    assert reason in error_of(client.post(**request_), 422)["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({}, 415),
        ({"Content-Type": ";;;"}, 415),
        ({"Content-Type": "image/png", "Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "image/png", "Host": "evil.example"}, 400),
        ({"Content-Type": "image/png", "Host": "127.0.0.1.evil.example:8000"}, 400),
        ({"Content-Type": "image/png", "Sec-Fetch-Site": "cross-site", "Origin": "https://a.b"}, 403),
        ({"Content-Type": "image/png", "X-Huge": "y" * 70_000}, 400),
        ({"Content-Type": "image/png", "Host": "[::1]:8000"}, 200),
        ({"Content-Type": "image/png", "Host": "10.0.0.7:8000"}, 200),
        ({"Content-Type": "image/png", "Host": "LOCALHOST"}, 200),
        ({"Content-Type": "image/png", "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)  # fmt: skip
def test_headers_are_checked(client: ServiceClient, headers: dict[str, str], status: int):
    assert client.post(content=png(), headers=headers).status_code == status


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("minscore=1", "did you mean min_score?"),
        ("min_score=2", "min_score: expected"),
        ("min_score=nan", "min_score: expected"),
        ("masks=png", "masks: expected"),
        ("simplify=-1", "simplify: expected"),
        ("overlay=perhaps", "overlay: expected"),
    ],
)
def test_options_are_checked(client: ServiceClient, query: str, reason: str):
    assert reason in error_of(client.post(f"/predict?{query}", **form(png())), 422)["message"]


def test_paths_and_methods_that_do_not_exist(client: ServiceClient):
    assert error_of(client.get("/absent"), 404)["code"] == "not_found"
    response = client.get("/predict")
    assert error_of(response, 405)["message"].startswith("GET /predict: ")
    assert response.headers["allow"] == "POST"


def test_a_slow_sender_gets_408(start: Start):
    async def drops() -> AsyncIterator[bytes]:
        for byte in png():
            yield bytes([byte])
            await asyncio.sleep(0.02)

    client = start(receive_timeout=0.1)
    response = client.post(content=drops(), headers={"Content-Type": "image/png"})
    assert error_of(response, 408)["limit"]["flag"] == "--receive-timeout"
    assert response.headers["connection"] == "close"


def test_a_body_that_has_not_arrived_is_refused_when_the_service_stops(start: Start):
    client = start()

    async def halted() -> AsyncIterator[bytes]:
        yield png()[:100]
        client.service.stop_receiving()
        await asyncio.sleep(5)

    response = client.post(content=halted(), headers={"Content-Type": "image/png"})
    assert error_of(response, 503)["code"] == "stopping"


def test_a_full_queue_gets_503_and_says_when_to_try_again(start: Start):
    client = start(seconds=0.05, max_queue=2, max_files=2, max_batch=1)
    responses = client.together([form(png(seed=n)) for n in range(6)])
    statuses = sorted(response.status_code for response in responses)
    assert statuses[0] == 200
    assert statuses[-1] == 503
    refused = next(response for response in responses if response.status_code == 503)
    assert error_of(refused, 503)["limit"] == {
        "name": "max_queue",
        "value": 2,
        "flag": "--max-queue",
    }
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert client.post(**form(png())).status_code == 200


def test_bodies_in_memory_are_bounded(start: Start):
    client = start(max_bytes=1000)

    async def half() -> AsyncIterator[bytes]:
        yield bytes(900)
        await asyncio.sleep(0.2)

    requests = [{"content": half(), "headers": {"Content-Type": "image/png"}} for _ in range(10)]
    statuses = [response.status_code for response in client.together(requests)]
    assert statuses.count(503) == 2
    assert statuses.count(422) == 8  # zeros are no image
    assert client.service.bodies.held == 0


@pytest.mark.parametrize("kind", ["image/png", "application/json", "multipart/form-data"])
def test_a_body_takes_no_more_memory_than_is_counted(kind: str):
    data = np.random.default_rng(0).bytes(1 << 20)
    lines = base64.encodebytes(data).decode()
    bodies = {
        "image/png": data,
        "application/json": json.dumps({"images": [{"data": lines}]}).encode(),
        "multipart/form-data": b"--b\r\n" + DISPOSITION + data + b"\r\n--b--\r\n",
    }
    body = bodies[kind]
    BodyReader(f"{kind}; boundary=b", ServiceSettings())  # imports the parser
    tracemalloc.start()
    reader = BodyReader(f"{kind}; boundary=b", ServiceSettings())
    for start in range(0, len(body), 1 << 16):
        reader.add(body[start : start + (1 << 16)])
    (image,) = reader.images()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.data == data
    assert peak < 1.3 * reader.copies * len(body)


def test_a_response_takes_no_more_memory_than_is_counted():
    text = json.dumps({"bbox": [0.5] * 40}).encode()
    image: Any = {"id": 1, "file_name": "a.png", "width": 1, "height": 1, "notes": []}
    part = ImageResponse(image, [text] * 5000, bytes(1 << 20), bytes(1 << 20))
    tracemalloc.start()
    content = json.loads(prediction_json([part, part], []))
    tracemalloc.stop()
    assert [one["id"] for one in content["annotations"]] == [*range(1, 10_001)]
    assert {one["image_id"] for one in content["annotations"][5000:]} == {2}
    assert base64.b64decode(content["images"][1]["preview"]) == bytes(1 << 20)

    tracemalloc.start()
    prediction_json([part, part], [])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * 2 * 2 * part.num_bytes


def test_responses_that_clients_are_slow_to_take_are_bounded(start: Start):
    client = start(max_files=3)
    responses = client.service.responses
    path = "/predict?preview=true"
    length = len(client.post(path, **form(png())).content)
    assert responses.held == 0
    responses.total = int(
        4.2 * length
    )  # a response takes 2.3 to 3 times as much while it is written

    async def work() -> list[int]:
        taken = asyncio.Event()
        statuses: list[int] = []

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            else:
                await taken.wait()

        def request() -> Any:
            bodies = iter([png()])

            async def receive() -> dict[str, Any]:
                body = next(bodies, None)
                if body is None:
                    await asyncio.sleep(10)
                return {"type": "http.request", "body": body}

            headers = [(b"content-type", b"image/png"), (b"host", b"localhost")]
            scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers}
            scope |= {"query_string": b"preview=true"}
            return asyncio.ensure_future(client.app(scope, receive, send))

        slow = []
        for count in (1, 2):
            slow.append(request())
            while len(statuses) < count:
                await asyncio.sleep(0.01)
        assert 2 * 0.7 * length < responses.held < 2 * 1.1 * length
        statuses.append((await client.client.post(path, **form(png()))).status_code)
        taken.set()
        await asyncio.gather(*slow)
        return statuses

    assert client.run(work()) == [200, 200, 503]
    assert responses.held == 0
    assert client.post(path, **form(png())).status_code == 200
    responses.total = length
    error = error_of(client.post(path, **form(png())), 413)
    assert error["message"].startswith(f"responses: this request needs more than {length:,} bytes")
    assert responses.held == 0


def test_decoded_pixels_are_bounded(start: Start):
    client = start(max_pixels=64 * 48, seconds=0.02, max_batch=8, max_wait=0.05)
    predictor = client.service.predictor
    assert isinstance(predictor, RecordingPredictor)
    predictor.batches.clear()
    responses = client.together([form(png(seed=n)) for n in range(6)])
    assert {response.status_code for response in responses} == {200}
    assert max(predictor.batches) == 2
    assert client.service._pixels.free == 2 * 64 * 48


def test_pixels_of_an_abandoned_request_are_free_when_its_thread_has_ended(start: Start):
    client = start(max_pixels=64 * 48, seconds=0.2)
    service = client.service

    async def abandon() -> int:
        image = ReceivedImage("a.png", png())
        work = service.predict([image], ResponseOptions(0.5), service.responses.share())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(work, 0.1)  # the model computes
        free = service._pixels.free
        while service._pixels.free == free:  # as long as the machine takes
            await asyncio.sleep(0.01)
        return free

    assert client.run(abandon()) == 64 * 48
    assert service._pixels.free == 2 * 64 * 48


def test_a_cancelled_image_leaves_the_queue_while_the_model_is_busy():
    predictor = RecordingPredictor(0.2)
    queue = BatchQueue(predictor, 1, 0.0)
    queue.start()
    image = predictor.prepare(np.zeros((64, 64, 3), np.uint8))
    first = queue.put(image)
    while not first.running():
        time.sleep(0.01)
    assert queue.put(image).cancel()
    assert len(queue) == 0
    first.result(10)
    assert queue.stop(10)


def test_long_responses_are_sent_in_pieces():
    body = bytes(range(256)) * 10_000
    start = {"type": "http.response.start", "status": 200}
    assert list(_pieces(start)) == [start]
    pieces = list(_pieces({"type": "http.response.body", "body": body}))
    assert b"".join(piece["body"] for piece in pieces) == body
    assert [piece["more_body"] for piece in pieces] == [True, True, False]


def test_a_long_content_type_is_not_parsed():
    with pytest.raises(ServiceError, match="at most 1,000 characters"):
        BodyReader('multipart/form-data; a="' + ";" * 60_000, ServiceSettings())


def test_a_key_is_required_where_one_is_set(start: Start):
    client = start(api_key="secret-1")
    assert client.get("/info").json()["api_key_required"]
    assert client.get("/health").status_code == 200
    for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Basic secret-1"}):
        response = client.post(**form(png()), headers=headers)
        assert error_of(response, 401)["code"] == "api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    assert client.get("/metrics").status_code == 401
    for headers in ({"X-API-Key": "secret-1"}, {"Authorization": "bearer secret-1"}):
        assert client.post(**form(png()), headers=headers).status_code == 200


def test_hosts_and_origins_can_be_allowed(start: Start):
    client = start(allowed_hosts=["*.example.org"], allow_origins=["https://lab.example.org"])
    headers = {
        "Host": "cells.example.org",
        "Origin": "https://lab.example.org",
        "Sec-Fetch-Site": "same-site",
    }
    response = client.post(**form(png()), headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://lab.example.org"
    other = client.post(**form(png()), headers={**headers, "Origin": "https://evil.example"})
    assert other.status_code == 403


def test_nothing_is_written_to_disk(start: Start, monkeypatch: pytest.MonkeyPatch):
    import tempfile

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a temporary file")

    monkeypatch.setattr(tempfile, "_get_default_tempdir", refuse)
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    large = png((700, 900))
    assert len(large) > 1 << 20
    assert start().post(**form(large)).status_code == 200


def test_names_of_files_are_plain(start: Start):
    files = [
        ("files", (name, png((40, 40)))) for name in ("../../a.png", "C:\\b\\é.png", "x" * 999)
    ]
    names = [image["file_name"] for image in start().post(files=files).json()["images"]]
    assert names == ["a.png", "é.png", "x" * 255]


def test_garbage_of_any_kind_gets_4xx(client: ServiceClient):
    """Bytes that were changed at random give a response, and never a crash."""
    import random

    randomness = random.Random(0)
    good = png((40, 40))
    for n in range(40):
        data = bytearray(good)
        for _ in range(1 + n % 5):
            data[randomness.randrange(len(data))] = randomness.randrange(256)
        assert client.post(**form(bytes(data))).status_code in (200, 413, 422)
    body = json.dumps({"images": [{"data": base64.b64encode(good).decode()}]}).encode()
    for n in range(40):
        data = bytearray(body)
        data[randomness.randrange(40 + n)] = randomness.randrange(256)
        response = client.post(content=bytes(data), headers={"Content-Type": "application/json"})
        assert response.status_code in (200, 413, 422)
