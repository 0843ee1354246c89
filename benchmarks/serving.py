"""The service under load, and under garbage: `maskrcnn serve` in a process of its own.

Load: clients that send drawn micrographs without a pause. Records errors, latency, batches, memory,
and the server's CPU seconds per image beside those of `Predictor` on the same images.
Garbage: requests with images of 128 px, a tenth of which are truncated, of a wrong type, with huge
headers, decompression bombs, nested JSON or slow. Each must get its status, and the others the
objects that they get alone.

    python -m benchmarks.serving                                       # 50 clients for 2 minutes, 10,000 requests
    python -m benchmarks.serving --seconds 10 --clients 8 --requests 200 --quick  # a rehearsal, stores nothing
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import os
import random
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn.synthetic.micrograph import draw_micrograph

from . import page
from .timing import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "serving.json"
PAGE = HERE.parent / "docs" / "serve.md"
SIZES = ((256, 320), (320, 256), (256, 256))
"""(height, width) of the images of the load."""
IMAGES = 12
RECEIVE_TIMEOUT = 3
"""Seconds in which a request must arrive, in the second part, so that slow senders do not take half a minute each."""
MOST_SLOW = 20
"""Slow senders at the same time; each takes `RECEIVE_TIMEOUT` seconds."""
GARBAGE = 0.1
MEMORY_BOUND = 1.05
CPU_BOUND = 1.15


@dataclass(frozen=True)
class Sent:
    """A request, and the statuses that are right for it."""

    kind: str
    data: bytes
    expected: tuple[int, ...] = (200,)
    is_slow: bool = False
    image: int = 0


@dataclass
class Received:
    """What came back."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="nuclei", help="what `maskrcnn serve` takes")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120, help="of the load")
    parser.add_argument(
        "--warm-up", type=float, help="seconds before them; by default half as many"
    )
    parser.add_argument("--requests", type=int, default=10_000, help="of the second part")
    parser.add_argument("--quick", action="store_true", help="stores no results")
    parser.add_argument("--reference", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.reference:
        print(json.dumps(reference(given.model, given.reference)))
        return

    before = machine()
    start = time.time()
    result: dict[str, Any] = {}
    if given.seconds:
        rounds = 1 if given.quick else 3
        warm_up = given.seconds / 2 if given.warm_up is None else given.warm_up
        result |= load(given.model, given.clients, given.seconds, warm_up, rounds)
    if given.requests:
        result |= garbage(given.model, given.clients, given.requests)
    command = f"python -m benchmarks.serving {' '.join(sys.argv[1:])}".strip()
    previous: dict[str, Any] = {}
    if RESULTS.exists() and not (given.seconds and given.requests):  # the other part stays
        previous = json.loads(RESULTS.read_text())
        command = " and ".join(dict.fromkeys([*previous["command"].split(" and "), command]))
    result = previous | {
        "command": command,
        "taken s": round(time.time() - start),
        "machine": before,
        "load after": machine()["load"],
        **result,
    }
    print(json.dumps(result, indent=1))
    if not given.quick:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        PAGE.write_text(page.filled(PAGE.read_text()))


def load(model: str, clients: int, seconds: float, warm_up: float, rounds: int) -> dict[str, Any]:
    """Clients that send without a pause."""
    images = encoded(SIZES, IMAGES)
    requests = [Sent("image", post(data, "image/png"), image=n) for n, data in enumerate(images)]
    with server(model) as (port, process, log):
        received, samples = asyncio.run(_load(port, requests, clients, seconds, warm_up))
        stopping = stop(process)
        crashes = log.read_text().count('"event": "crash"')

    # from the end of the warm-up
    first = samples[0]
    last = samples[-1]
    resident = [sample["process_resident_memory_bytes"] for sample in samples]
    spent = {name: last[name] - first[name] for name in last}
    served = spent["maskrcnn_images_total"]
    if not served:
        raise RuntimeError(f"no image was served within {seconds:g} s; raise --seconds")
    per_image = spent["process_cpu_seconds_total"] / served
    alone = alone_seconds(model, rounds)
    times = sorted(received.seconds)
    cut = statistics.quantiles(times, n=100)
    return {
        "load": [
            {
                "clients": clients,
                "seconds": seconds,
                "after s": warm_up,
                "requests": len(times),
                "errors": len(received.wrong),
                "requests per second": served / (last["time"] - first["time"]),
                "p50 ms": 1000 * cut[49],
                "p90 ms": 1000 * cut[89],
                "p99 ms": 1000 * cut[98],
                "longest ms": 1000 * times[-1],
                "images per batch": served / spent["maskrcnn_batch_size_count"],
            }
        ],
        "memory and processor": [
            {
                "MB after warm-up": resident[0] / 1e6,
                "MB at most after that": max(resident) / 1e6,
                "its ratio": max(resident) / resident[0],
                "bound of it": MEMORY_BOUND,
                "CPU s per image": per_image,
                "CPU s of Predictor": alone,
                "their ratio": per_image / alone,
                "bound of that": CPU_BOUND,
            }
        ],
        "wrong under load": received.wrong[:5],
        "SIGTERM": stopping,
        "crashes in the log": crashes,
    }


async def _load(
    port: int, requests: Sequence[Sent], clients: int, seconds: float, warm_up: float
) -> tuple[Received, list[dict[str, float]]]:
    received = Received()
    samples: list[dict[str, float]] = []
    start_counting = time.monotonic() + warm_up
    end = start_counting + seconds

    async def client(number: int) -> None:
        connection = Connection(port)
        mixed = random.Random(number).sample(requests, len(requests))
        for request in itertools.cycle(mixed):
            if time.monotonic() >= end:
                break
            counted = received if time.monotonic() >= start_counting else Received()
            await _ask(connection, request, counted)
        await connection.close()

    async def sample() -> None:
        connection = Connection(port)
        await asyncio.sleep(warm_up)
        while time.monotonic() < end:
            _, body = await connection.exchange(get("/metrics"))
            samples.append({**metrics(body.decode()), "time": time.monotonic()})
            await asyncio.sleep(min(1.0, seconds / 20))
        await connection.close()

    await asyncio.gather(sample(), *(client(number) for number in range(clients)))
    return received, samples


def garbage(model: str, clients: int, count: int) -> dict[str, Any]:
    """Requests of which a tenth are garbage."""
    images = encoded(((128, 128),), 12)
    with server(model, "--receive-timeout", str(RECEIVE_TIMEOUT)) as (port, process, log):
        received = asyncio.run(_garbage(port, images, clients, count))
        status, health = asyncio.run(_once(port, get("/health")))
        stopping = stop(process)
        crashes = log.read_text().count('"event": "crash"')
    kinds: dict[str, dict[str, Any]] = {}
    for (kind, answered), number in sorted(received.statuses.items()):
        row = kinds.setdefault(kind, {"request": kind, "number": 0, "statuses": []})
        row["number"] += number
        row["statuses"].append(f"{answered}: {number}")
    return {
        "garbage": [
            {**row, "statuses": ", ".join(row["statuses"])} for row in kinds.values()
        ],
        "requests of it": sum(received.statuses.values()),
        "with a wrong status, or other objects than alone": len(received.wrong),
        "wrong among garbage": received.wrong[:5],
        "health after it": f"{status} {health.decode()}",
        "SIGTERM after it": stopping,
        "crashes in the log of it": crashes,
    }  # fmt: skip


async def _garbage(port: int, images: Sequence[bytes], clients: int, count: int) -> Received:
    randomness = random.Random(0)
    objects = {}
    for n, data in enumerate(images):
        _, body = await _once(port, post(data, "image/png"))
        objects[n] = len(json.loads(body)["annotations"])

    bad = garbage_of(images[0])
    pixel = png(np.zeros((1, 1, 3), np.uint8))
    good = [Sent("image", post(data, "image/png"), image=n) for n, data in enumerate(images)]
    good.append(Sent("1 x 1 image", post(pixel, "image/png"), image=-1))
    objects[-1] = 0
    requests = [
        randomness.choice(bad if randomness.random() < GARBAGE else good) for _ in range(count)
    ]
    quick = iter([request for request in requests if not request.is_slow])
    slow = iter([request for request in requests if request.is_slow])
    received = Received()

    async def client() -> None:
        connection = Connection(port)
        for request in quick:
            body = await _ask(connection, request, received)
            if request.expected == (200,) and body is not None:
                found = len(json.loads(body)["annotations"])
                if found != objects[request.image]:
                    received.wrong.append(
                        f"{request.kind} {request.image}: {found} objects, alone "
                        f"{objects[request.image]}"
                    )
        await connection.close()

    async def slow_client() -> None:
        for request in slow:
            connection = Connection(port)
            await _ask(connection, request, received)
            await connection.close()

    await asyncio.gather(
        *(client() for _ in range(clients)), *(slow_client() for _ in range(MOST_SLOW))
    )
    return received


def garbage_of(image: bytes) -> list[Sent]:
    """One request of each kind."""
    boundary = "multipart/form-data; boundary=b"
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    tail = b"\r\n--b--\r\n"
    text = base64.b64encode(image)
    huge = get("/health").replace(b"\r\n\r\n", b"\r\nX-Huge: " + b"y" * 200_000 + b"\r\n\r\n")
    return [
        Sent("truncated image", post(image[: len(image) // 2], "image/png"), (422,)),
        Sent("truncated form", post(part + image, boundary), (422,)),
        Sent("form of a text file", post(part + b"hello" + tail, boundary), (422,)),
        Sent("wrong content type", post(image, "text/plain"), (415,)),
        Sent("PDF", post(b"%PDF-1.7 ...", "image/png"), (422,)),
        Sent("random bytes", post(os.urandom(5000), "application/octet-stream"), (422,)),
        Sent("huge header", huge, (400,)),
        Sent("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", (400,)),
        Sent("decompression bomb", post(bomb(), "image/png"), (413,)),
        Sent("body above the limit", post(b"", "image/png", length=10**10), (413,)),
        Sent("nested JSON", post(b"[" * 100_000, "application/json"), (422,)),
        Sent("truncated JSON", post(b'{"images": [{"data": "' + text, "application/json"), (422,)),
        Sent("slow head", post(image, "image/png")[:40], (408,), True),
        Sent("slow body", post(image, "image/png")[:-100], (408,), True),
    ]


async def _ask(connection: Connection, request: Sent, received: Received) -> bytes | None:
    """Sends a request and records the answer; returns the body of a 200."""
    start = time.monotonic()
    try:
        status, body = await asyncio.wait_for(connection.exchange(request.data), 90)
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        status, body = 0, repr(error).encode()
        await connection.close()
    received.seconds.append(time.monotonic() - start)
    received.statuses[request.kind, status] += 1
    if status not in request.expected:
        received.wrong.append(f"{request.kind}: {status} {body[:200].decode(errors='replace')}")
    return body if status == 200 else None


async def _once(port: int, data: bytes) -> tuple[int, bytes]:
    connection = Connection(port)
    answer = await connection.exchange(data)
    await connection.close()
    return answer


class Connection:
    """A connection that is kept open as long as the server keeps it; costs little time of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def exchange(self, data: bytes) -> tuple[int, bytes]:
        """Sends a request; returns status and body of the response."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1]) if length else 0)
        status = int(head.split(b" ", 2)[1])
        if status >= 400:  # the rest of a bad request is not sent
            await self.close()
        return status, body

    async def close(self) -> None:
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.contextmanager
def server(model: str, *words: str) -> Generator[tuple[int, subprocess.Popen[str], Path]]:
    """`maskrcnn serve` on a free port: yields the port, the process and its log."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = [sys.executable, "-m", "maskrcnn", "serve", model, "--port", "0", *words]
        with (
            log.open("w") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            assert process.stdout is not None
            ready = re.search(r":(\d+)/", process.stdout.readline())
            if ready is None:
                raise RuntimeError(log.read_text())
            try:
                yield int(ready[1]), process, log
            finally:
                process.terminate()


def stop(process: subprocess.Popen[str]) -> str:
    """Ends the server; returns its status and how long that took."""
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    status = process.wait(60)
    return f"status {status} after {time.monotonic() - start:.1f} s"


def alone_seconds(model: str, rounds: int) -> float:
    """CPU seconds per image of `Predictor` on the images of the load, in a process of its own."""
    words = ["--model", model, "--reference", str(rounds)]
    command = [sys.executable, "-m", "benchmarks.serving", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def reference(model: str, rounds: int) -> float:
    """CPU seconds per image of `Predictor`, from bytes to COCO results, as `maskrcnn predict` calls it."""
    import maskrcnn as mr
    from maskrcnn.cli.device import chosen
    from maskrcnn.runtime.keep_memory import keep_memory

    keep_memory()
    images = encoded(SIZES, IMAGES)
    predictor = mr.Predictor(model, device=chosen(None, model), min_score=0.5)
    list(predictor.stream(images[:8]))
    start = time.process_time()
    for _ in range(rounds):
        for instances in predictor.stream(images):
            json.dumps(instances.to_coco())
    return (time.process_time() - start) / (rounds * len(images))


def metrics(text: str) -> dict[str, float]:
    """The values of plain metrics of Prometheus."""
    lines = (line.split(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines if "{" not in name}


def encoded(sizes: Sequence[tuple[int, int]], count: int) -> list[bytes]:
    """Drawn micrographs as PNG files, the sizes in turn."""
    return [png(draw_micrograph(n, sizes[n % len(sizes)])[0]) for n in range(count)]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of a few kilobytes that claims 3.6 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1_000_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(body: bytes, kind: str, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


if __name__ == "__main__":
    main()
