"""`maskrcnn serve`: an HTTP service and a browser page in front of a model."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from ..service.service_settings import ServiceSettings

API_KEY = "MASKRCNN_API_KEY"
"""Environment variable with the API key."""
_GPU_BATCH = 16


@Parameter(name="*")
@dataclass(frozen=True)
class ServiceFlags:
    """Flags for requests, batches and access: the service's settings."""

    min_score: float = 0.5
    """Leave out objects with a lower score, unless a request sets its own."""

    max_batch: int | None = None
    """Most images per forward pass; by default 16 on a GPU, else 4. Images of equal padded shape
    share one."""

    max_wait: float = 0.01
    """Most seconds that an image waits for others while the model is idle."""

    max_bytes: int = 64 << 20
    """Largest body of a request. Larger ones get status 413."""

    max_pixels: int = 50_000_000
    """Largest width x height of an image. Larger ones get status 413. Decoding takes up to 12 bytes
    per pixel, 32 for 16-bit color. Up to two such images are held at once."""

    max_files: int = 16
    """Most images of a request. More get status 413."""

    max_queue: int = 64
    """Most images that are received and not yet answered. More get status 503."""

    timeout: float = 60.0
    """Most seconds from a received request to its response; then status 504."""

    receive_timeout: float = 30.0
    """Most seconds in which a request must arrive; then status 408."""

    grace: float = 20.0
    """Most seconds for which the server still answers requests after a signal to stop."""

    api_key_file: Path | None = None
    """File with a key that requests must carry (X-API-Key, or Authorization: Bearer). The
    environment variable MASKRCNN_API_KEY does the same."""

    allowed_hosts: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    """Host names of the server, beside localhost, HOST and IP addresses. An asterisk stands for any
    part of a name; alone it allows all."""

    allow_origins: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    """Origins whose web pages may send requests, such as https://example.org."""

    root_path: str = ""
    """Path prefix under which a reverse proxy publishes the server, such as /cells."""

    def settings(self, host: str) -> ServiceSettings:
        """The settings of a service that listens at a host.

        Raises:
            ValueError: a value is out of its range, or the file has no key.
        """
        from ..service.service_settings import ServiceSettings

        given = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if self.max_batch is None:
            given["max_batch"] = ServiceSettings.max_batch
        given["api_key"] = _api_key(given.pop("api_key_file"))
        given["allowed_hosts"] = (host, *self.allowed_hosts)
        return ServiceSettings(**given)


def serve(
    model: str,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    flags: ServiceFlags | None = None,
    device: str | None = None,
    tta: str | None = None,
    dtype: Literal["float32", "bfloat16", "auto"] = "float32",
    intensity_range: Annotated[tuple[float, float] | None, Parameter(negative="")] = None,
) -> int:
    """Serve a model over HTTP: a browser page at /, POST /predict, /docs, /health and /metrics.

    Requests are predicted in batches. Nothing that a client sends is written to disk, and no URL is
    fetched. Ctrl-C and SIGTERM stop the server after it has answered the requests that arrived; the
    exit status is 0. The log goes to standard error, one JSON object per line.

    Needs: pip install 'maskrcnn[serve]'. For exported files, also what runs them: 'maskrcnn[onnx]'
    or 'maskrcnn[openvino]'.

    Args:
        model: Name of published weights, run folder, checkpoint (ours, torchvision's .pth,
            Detectron2's .pth or .pkl), or exported file (.onnx, .xml, .pt2).
        host: Address to listen on. 0.0.0.0: reachable from other machines.
        port: Port to listen on; 0 = any free one.
        flags: Settings of the service.
        device: cpu, cuda, cuda:1, ...; by default a GPU if there is one.
        tta: Average several augmented views of each image (more accurate, slower): flip, turns
            (right-angle rotations), scales (0.8, 1.25), or a comma-separated list of these.
        dtype: Compute precision. bfloat16 takes about half the time of float32 on devices that
            support it; auto uses it only there.
        intensity_range: Values of 16-bit and floating-point images that become black and white,
            such as 0 4095. Default: those of the model, else the full range.
    """
    from ..runtime.optional_packages import check_packages
    from ..service.needed_packages import PACKAGES

    check_packages("maskrcnn serve", PACKAGES, "serve")
    flags = flags or ServiceFlags()
    settings = flags.settings(host)

    from ..prediction.predictor import Predictor
    from ..runtime.keep_memory import keep_memory
    from ..service.json_log import json_lines
    from ..service.run_server import bind, serve
    from .device import chosen

    with bind(host, port) as listener, json_lines(sys.stderr):
        keep_memory(one_heap=True)
        where = chosen(device, model)
        if flags.max_batch is None and str(where).startswith("cuda"):
            settings = replace(settings, max_batch=_GPU_BATCH)
        predictor = Predictor(
            model,
            device=where,
            dtype=dtype,
            tta=tta,
            intensity_range=intensity_range,
            max_pixels=flags.max_pixels,
        )
        name = Path(model).name

        def on_ready(address: str) -> None:
            print(f"{name} is ready at {address} (Ctrl-C stops it)", flush=True)

        has_ended = serve(predictor, listener, settings, name=name, on_ready=on_ready)
    if not has_ended:
        print("The model still computes; its work is abandoned.", file=sys.stderr, flush=True)
        os._exit(0)  # a thread within PyTorch cannot be stopped
    return 0


def _api_key(file: Path | None) -> str | None:
    """The key of the file, else that of the environment."""
    if file is None:
        return os.environ.get(API_KEY) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        key = ""
    if not key:
        raise ValueError(f"--api-key-file {file}: expected one line with a key, got none")
    return key
