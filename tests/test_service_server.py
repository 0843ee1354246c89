"""The service behind sockets: clients that are slow or send no HTTP, addresses, signals."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_client import RecordingPredictor, png

import maskrcnn as mr
from maskrcnn.cli import run
from maskrcnn.service.service_settings import ServiceSettings

uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")

SLOW = 0.2  # seconds in which a request must arrive


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server in a thread."""
    from maskrcnn.service import run_server

    listener = run_server.bind("127.0.0.1", 0)
    number = listener.getsockname()[1]
    ready = threading.Event()
    servers: list[Any] = []

    class Observed(run_server._Server):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            servers.append(self)

    patch = pytest.MonkeyPatch()
    patch.setattr(run_server, "_Server", Observed)
    settings = ServiceSettings(receive_timeout=SLOW)
    thread = threading.Thread(
        target=run_server.serve,
        args=(RecordingPredictor(), listener, settings),
        kwargs={"on_ready": lambda address: ready.set()},
    )
    thread.start()
    assert ready.wait(20)
    yield number
    servers[0].should_exit = True
    thread.join(20)
    patch.undo()
    assert not thread.is_alive()


def exchange(port: int, *pieces: bytes) -> bytes:
    """Sends pieces, and returns all that the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.1\r\nHost: local", 408),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000, 400),
        (
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 100\r\n\r\nabc",
            408,
        ),
        (
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            400,
        ),
    ],
)
def test_what_is_slow_or_no_http_is_answered_and_closed(port: int, sent: bytes, status: int):
    head, _, body = exchange(port, sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body)["error"]["id"].encode() in head


def test_connections_without_a_request_are_closed(port: int):
    assert exchange(port) == b""


def test_a_refused_body_is_read_to_its_end_or_the_deadline(port: int):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    answer = exchange(port, head + b"Content-Length: 999999999\r\n\r\n", b"x" * 300_000)
    assert answer.startswith(b"HTTP/1.1 413 ")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    headers = {"Content-Type": "image/png", "Content-Encoding": "gzip"}
    for method, path, body, status in (
        ("POST", "/predict", b"abc", 415),
        ("GET", "/health", b"", 200),
    ):
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        assert response.status == status
        response.read()
    connection.close()


def test_addresses_that_cannot_be_used_are_one_sentence(
    port: int, capsys: pytest.CaptureFixture[str]
):
    for words, expected in {
        f"--port {port}": f"port {port} of 127.0.0.1 is in use; choose another with --port",
        "--host 192.0.2.1": "--host 192.0.2.1: this machine does not have this address",
        "--host no.such.host.invalid": "--host no.such.host.invalid: ",
        "--max-batch 0": "--max-batch: expected at least 1, got 0",
    }.items():
        assert run(["serve", "nuclei", *words.split()]) == 2
        assert expected in capsys.readouterr().err


def test_a_missing_extra_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("maskrcnn.service.needed_packages.PACKAGES", ("fastapi", "absent_package"))
    assert run(["serve", "nuclei"]) == 2
    message = capsys.readouterr().err
    assert "needs absent_package" in message
    assert "pip install 'maskrcnn[serve]'" in message


def test_a_signal_lets_requests_finish_and_ends_with_status_0(tmp_path: Path):
    model = tmp_path / "tiny.safetensors"
    mr.save(RecordingPredictor().network, model)
    (tmp_path / "key").write_text("secret-1\n")
    words = ["serve", str(model), "--port", "0", "--device", "cpu", "--max-wait", "0.7"]
    script = "import sys; from maskrcnn.__main__ import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", script, *words, "--api-key-file", str(tmp_path / "key")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    ) as server:
        assert server.stdout is not None
        ready = server.stdout.readline()
        address = ready.split(" at ")[1].split()[0]
        responses: list[bytes] = []

        def post() -> None:
            headers = {"Content-Type": "image/png", "X-API-Key": "secret-1"}
            request = urllib.request.Request(f"{address}predict", png(), headers)
            with urllib.request.urlopen(request, timeout=20) as response:
                responses.append(response.read())

        # the image waits for others while the signal arrives
        client = threading.Thread(target=post)
        client.start()
        client.join(0.3)
        assert client.is_alive()
        server.send_signal(signal.SIGTERM)
        client.join(20)
        _, log = server.communicate(timeout=20)

    assert b'"annotations"' in responses[0]
    assert server.returncode == 0
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events[-1] == "stopped"
    assert "stopping" in events
    assert ready.startswith("tiny.safetensors is ready at http://127.0.0.1:")


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_port_out_of_range_is_refused(port: int):
    from maskrcnn.service import run_server

    with pytest.raises(ValueError, match=f"expected 0 to 65535, got {port}"):
        run_server.bind("127.0.0.1", port)
