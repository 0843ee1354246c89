"""Everything that people hand to predict: URLs, bytes, tensors, wildcards, unusual names, nothing at all."""

from __future__ import annotations

import http.server
import io
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from image_samples import is_red, red, scaled, stack_of, tiff
from models import tiny_config

import maskrcnn as mr
from maskrcnn.cli import run
from maskrcnn.config import Category
from maskrcnn.images import remote
from maskrcnn.images.image_files import ImageWarning, image_files
from maskrcnn.images.open_image import ImageError
from maskrcnn.images.read import read_image
from maskrcnn.images.remote import download
from maskrcnn.model.maskrcnn import MaskRCNN
from maskrcnn.prediction.image_input import read_input
from maskrcnn.prediction.model_engine import ModelEngine
from maskrcnn.prediction.predict_files import predict_files
from maskrcnn.prediction.predict_inputs import find_inputs
from maskrcnn.prediction.predictor import Predictor, predict
from maskrcnn.runtime import cache
from maskrcnn.structures import Detections


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN.from_config(tiny_config((Category("stone", 1),))).eval()


@pytest.fixture
def predictor(model: MaskRCNN, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """Reads images as every Predictor does, and finds nothing in them, which is fast."""
    nothing = Detections(
        boxes=torch.zeros(1, 0, 4),
        scores=torch.zeros(1, 0),
        labels=torch.zeros(1, 0, dtype=torch.long),
        valid=torch.zeros(1, 0, dtype=torch.bool),
        masks=torch.zeros(1, 0, 28, 28),
    )
    monkeypatch.setattr(ModelEngine, "__call__", lambda self, batch: nothing)
    return Predictor(model)


class Web(http.server.BaseHTTPRequestHandler):
    """Serves good, endless, slow, huge, broken and moved images."""

    image = b""

    def do_GET(self) -> None:
        self.path = self.path.partition("?")[0]
        moved = {"/file": "file:///etc/hostname", "/ftp": "ftp://h/a.png", "/moved": "/a%20b.png"}
        if self.path in moved:
            self.send_response(302)
            self.send_header("Location", moved[self.path])
            self.end_headers()
        elif self.path == "/absent.png":
            self.send_error(404)
        else:
            self.send_response(200)
            if self.path in ("/a%20b.png", "/cut.png"):
                self.send_header("Content-Length", str(len(self.image)))
            if self.path == "/huge.png":
                self.send_header("Content-Length", str(10**12))
            self.end_headers()
            with suppress(OSError):
                self.send_body()

    def send_body(self) -> None:
        if self.path in ("/a%20b.png", "/unsized.png"):
            self.wfile.write(self.image)
        elif self.path == "/cut.png":
            self.wfile.write(self.image[:20])
        elif self.path == "/page.jpg":
            self.wfile.write(b"<!DOCTYPE html><html>sign in</html>")
        elif self.path == "/endless.png":
            for _ in range(1000):
                self.wfile.write(bytes(1 << 16))
        elif self.path == "/slow.png":
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    Web.image = red(tmp_path / "served.png").read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_urls_are_read_and_named(web, predictor):
    for name in ("/a%20b.png", "/unsized.png", "/moved"):
        assert is_red(read_image(web + name))
    result = predictor(f"{web}/a%20b.png?size=large")
    assert (result.file_name, result.image_id) == ("a b.png", 1)
    assert is_red(result.image)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/absent.png", "the server returned 404"),
        ("/endless.png", "the file has more than 1 MB"),
        ("/huge.png", "are more than 1 MB"),
        ("/slow.png", r"not complete after 0\.5 seconds"),
        ("/cut.png", "closed after 20 of"),
        ("/file", "(redirected to|not allowed).*"),
        ("/ftp", "redirected to ftp://h/a.png; only http and https"),
    ],
)
def test_bad_servers_end_in_one_sentence_within_their_limits(web, name, reason):
    start = time.monotonic()
    with pytest.raises(ImageError, match=f"^{web}{name}: .*{reason}"):
        download(web + name, max_bytes=1 << 20, seconds=0.5)
    assert time.monotonic() - start < 3


def test_a_server_that_does_not_exist_and_a_page_are_named(web):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/a.png"
        with pytest.raises(ImageError, match=r"download failed: .*refused"):
            read_image(address)
    with pytest.raises(ImageError, match="it is an HTML page, perhaps the error message"):
        read_image(f"{web}/page.jpg")


def test_a_path_and_other_schemes_are_never_fetched(monkeypatch):
    monkeypatch.setattr(remote, "_opener", lambda *_: pytest.fail("the network was used"))
    for source, advice in {
        Path("http://host/a.png"): "http:/host/a.png: expected a URL as text",
        "ftp://host/a.png": "ftp://host/a.png: expected a file name or a URL with http or https, "
        "got a URL with ftp; download it first",
        "S3://bucket/a*.png": "got a URL with s3; download it first, or pass its https address",
        "gs://bucket/a.png": "got a URL with gs; download it first, or pass its https address",
        "file:///etc/host%20name": "got a URL with file; pass /etc/host name",
        "data:image/png;base64," + 999 * "A": r"A\.\.\.: .* decode it and pass the bytes",
    }.items():
        with pytest.raises(ImageError, match=advice):
            read_image(source)
        with pytest.raises(ImageError, match=advice):
            mr.predict("absent.safetensors", source)
        with pytest.raises(ImageError, match=advice):
            find_inputs([source], Path("out"))


def test_a_file_named_like_a_url_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    red(tmp_path / "s3:" / "a.png")
    assert is_red(read_image("s3://a.png"))


def test_bytes_and_file_objects_are_read(tmp_path):
    path = red(tmp_path / "a.png")
    data = path.read_bytes()
    assert is_red(read_image(data))
    with path.open("rb") as file:
        file.seek(50)
        for source in (io.BytesIO(data), file):
            assert is_red(read_image(source))
            assert not source.closed
    receiver, sender = os.pipe()
    with os.fdopen(sender, "wb") as end:
        end.write(data)
    with os.fdopen(receiver, "rb") as pipe:
        assert is_red(read_image(pipe))
    with path.open(encoding="latin-1") as text, pytest.raises(ImageError, match=r'mode \("rb"\)'):
        read_image(text)  # ty: ignore[invalid-argument-type]
    with pytest.raises(ImageError, match="expected an open file, got a closed one"):
        read_image(file)
    with pytest.raises(ImageError, match=r"the given bytes: .*the file is empty"):
        read_image(b"")


def test_tensors_are_channels_first_and_their_range_is_checked():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for given in (tensor, tensor.float() / 255, tensor.double() / 255, tensor.int()):
        assert (read_input(given, None, 100)[0] == image).all()
    assert (read_input(tensor[:1], None, 100)[0] == image[:, :, :1]).all()
    for given, reason in (
        (tensor.permute(1, 2, 0), r"got shape \[5, 7, 3\]; for .* tensor.permute\(2, 0, 1\)"),
        (tensor[None], r"pass list\(tensor\)"),
        (tensor.float(), "values 0 to 1, got .*divide by 255"),
        (tensor.float() / 255 - 0.5, "before normalization"),
        (tensor.float() * torch.nan, "got nan to nan"),
        (tensor.long() * 9, "expected int64 values in 0..255"),
    ):
        with pytest.raises(ImageError, match=reason):
            read_input(given, None, 100)


def test_what_is_no_image_is_refused_by_its_index(model, predictor):
    image = np.zeros((8, 9, 3), np.uint8)
    for wrong, got in ((None, "None"), (7, "int"), ([image], "list"), ({}, "dict")):
        with pytest.raises(TypeError, match=rf"images\[1\]: expected a file name.*, got {got}"):
            list(predict(model, [image, wrong]))
    for wrong in (None, 7, {"a": 1}):
        with pytest.raises(TypeError, match="images: expected a file name"):
            predict(model, wrong)  # ty: ignore[no-matching-overload]
    with pytest.raises(TypeError, match=r"image: expected a file name.*, got None"):
        predictor(None)
    with pytest.raises(ImageError, match=r"images\[1\]: the given array: expected an array"):
        list(predict(model, [image, image[:, :, :2]]))


def test_a_file_of_several_frames_warns_once(predictor, tmp_path):
    for n in range(5):
        (tmp_path / f"{n}.tif").write_bytes(tiff(stack_of(3)))
    with pytest.warns(ImageWarning, match=r"0\.tif: several frames, the first is used"):
        predictor(tmp_path / "0.tif")
    with pytest.warns(ImageWarning) as caught:
        assert len(list(predictor.stream(image_files(tmp_path)))) == 5
    assert [str(w.message) for w in caught] == [
        "5 images have several frames, the first of each is used: 0.tif, 1.tif, 2.tif, ..."
    ]
    summary = predict_files(predictor, [tmp_path], tmp_path / "out", progress=False)
    assert len(summary.several_frames) == 5


def test_the_range_and_the_limit_are_settings_of_a_predictor(model, tmp_path, twelve_bits):
    (tmp_path / "a.tif").write_bytes(tiff([twelve_bits]))
    ranged = Predictor(model, intensity_range=(0, 4095))
    assert (ranged.prepare(tmp_path / "a.tif").image == scaled(twelve_bits)).all()
    with pytest.raises(ImageError, match=r"more than the limit of 100; .* --max-pixels"):
        Predictor(model, max_pixels=100)(tmp_path / "a.tif")
    for wrong in ({"intensity_range": (9, 1)}, {"max_pixels": 0}):
        with pytest.raises(ValueError, match="expected"):
            Predictor(model, **wrong)


def names_of(predictor: Predictor, inputs: list[str | Path], out: Path) -> list[str]:
    """The overlays of a job."""
    predict_files(predictor, inputs, out, progress=False)
    paths = (path for path in out.rglob("*") if path.is_file() and path.name != "results.json")
    return sorted(path.relative_to(out).as_posix() for path in paths)


def test_patterns_are_expanded_and_files_of_that_name_win(predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("p/a.png", "p/b.jpg", "p/deep/er/c.png", "p/[1].jpg", "p/1.jpg", "q[1]/d.png"):
        red(tmp_path / name)
    (tmp_path / "p" / "notes.txt").touch()
    for number, (pattern, expected) in enumerate(
        {
            "p/*.jpg": ["1.jpg", "[1].jpg", "b.jpg"],
            "p/**/*.png": ["a.png", "deep/er/c.png"],
            "p/[1].jpg": ["[1].jpg"],
            "p/[ab].*": ["a.png", "b.jpg"],
            "q[1]/*": ["d.png"],
        }.items()
    ):
        assert names_of(predictor, [pattern], tmp_path / f"out{number}") == expected, pattern
    summary = predict_files(predictor, ["p/*"], tmp_path / "all", progress=False)
    assert (summary.images, summary.left_out) == (5, [Path("p/notes.txt")])
    assert [path.name for path in image_files("p/*.png")] == ["a.png"]
    with pytest.raises(FileNotFoundError, match=r"x\*: nothing matches this pattern"):
        predict_files(predictor, ["x*"], tmp_path / "none", progress=False)
    with pytest.raises(FileNotFoundError, match=r"pattern; p holds 4 images, such as 1\.jpg"):
        predict_files(predictor, ["p/*.tif"], tmp_path / "none", progress=False)
    with pytest.raises(ValueError, match=r'is a pattern.*mr.image_files\("p/\*.png"\)'):
        predictor("p/*.png")


def test_urls_and_standard_input_are_predicted_among_files(web, predictor, tmp_path, monkeypatch):
    red(tmp_path / "in" / "a b.png")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Web.image)))
    inputs = [tmp_path / "in", f"{web}/a%20b.png", f"{web}/unsized.png", "-"]
    out = tmp_path / "out"
    assert names_of(predictor, inputs, out) == [
        "127.0.0.1/a b.png",
        "a b.png",
        "stdin.png",
        "unsized.png",
    ]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(ImageError, match="-: expected an image on standard input, got nothing"):
        predict_files(predictor, ["-"], out, progress=False)
    with pytest.raises(ValueError, match=r"unsized.png: annotations need image files"):
        predict_files(predictor, [f"{web}/unsized.png"], out, annotations="coco", progress=False)


@pytest.mark.parametrize(
    "name",
    ["with spaces.png", "Prüfung-画像.png", "two\nlines.png", "%41.png", "-.png", "'q\".png"],
)
def test_unusual_names_are_names(name, predictor, tmp_path):
    red(tmp_path / "in" / name)
    assert names_of(predictor, [tmp_path / "in"], tmp_path / "out") == [name]
    assert names_of(predictor, [tmp_path / "in" / name], tmp_path / "out") == [name]


def test_names_that_are_too_long_or_no_text_get_an_overlay(predictor, tmp_path):
    folder = tmp_path / "in"
    long = "n" * 251
    red(folder / f"{long}.png")
    red(folder / f"{long}.jpg")
    red(folder / f"{long}.gif")
    raw = os.fsdecode(b"\xff\xfe.png")
    red(folder / raw)
    (folder / os.fsdecode(b"\xfd.png")).write_bytes(b"broken")
    summary = predict_files(predictor, [folder], tmp_path / "out")  # with progress: it prints
    assert (summary.images, len(summary.failed)) == (4, 1)
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert len(made) == 5
    assert raw in made
    assert f"{long}.jpg" in made


def test_nothing_readable_ends_without_results_in_one_sentence(model, predictor, tmp_path, capsys):
    mr.save(model, tmp_path / "m.safetensors")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"<html><head></head></html>")
    (tmp_path / "in" / "b.png").touch()
    (tmp_path / "in" / "c.heic").touch()
    out = tmp_path / "out"
    words = ["predict", str(tmp_path / "m.safetensors"), str(tmp_path / "in"), "--out", str(out)]
    assert run(words) == 2
    printed = capsys.readouterr()
    assert "No image could be read (2 files); nothing was written." in printed.err
    assert "left out 1 file not read as images: 1 .heic" in printed.err.replace("Left", "left")
    assert "overlays" not in printed.out
    assert list(out.iterdir()) == []


def test_a_dash_on_the_command_line_is_standard_input(
    model, predictor, tmp_path, monkeypatch, capsys
):
    mr.save(model, tmp_path / "m.safetensors")
    data = red(tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    words = ["predict", str(tmp_path / "m.safetensors"), "-", "--out", str(tmp_path / "out")]
    assert run(words) == 0
    assert (tmp_path / "out" / "stdin.png").is_file()


def test_a_read_only_home_gives_a_temporary_cache_and_one_warning(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "file" / "cache"))
    cache._temporary_folder.cache_clear()
    with pytest.warns(cache.CacheWarning, match="not writable.*set MASKRCNN_HOME") as caught:
        first = cache.writable_cache_folder()
    assert len(caught) == 1
    assert cache.writable_cache_folder() == first
    assert first.is_dir()
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "mine"))
    assert cache.writable_cache_folder() == tmp_path / "mine"


def test_the_results_of_a_job_name_their_images(predictor, tmp_path):
    red(tmp_path / "a.jfif")
    predict_files(predictor, [tmp_path / "a.jfif"], tmp_path / "out", progress=False)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == []
    assert (tmp_path / "out" / "a.jpg").is_file()
