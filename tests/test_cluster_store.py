"""An object store as source and as destination, with a real server of S3."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_samples import BROKEN, MIN_SCORE, SHAPES, tiny_model, write_images

import maskrcnn as mr

pa = pytest.importorskip("pyarrow", reason="pip install 'maskrcnn[cluster]'")
s3fs = pytest.importorskip("s3fs", reason="pip install 'maskrcnn[cluster]'")
moto = pytest.importorskip("moto.server", reason="pip install 'moto[server,s3]'")

from maskrcnn.cluster import file_stores  # noqa: E402
from maskrcnn.cluster.file_stores import StoreError, read_object  # noqa: E402
from maskrcnn.cluster.image_table import opened_table  # noqa: E402
from maskrcnn.cluster.row_sources import open_source  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of the server and of botocore, not ours


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def store(photos: Path) -> Iterator[Any]:
    """A server with the photos in s3://data/photos."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
            patch.delenv(name, raising=False)
        files = s3fs.S3FileSystem(use_listings_cache=False)
        files.mkdir("data")
        files.put(str(photos), "data/photos", recursive=True)
        yield files
    server.stop()


@pytest.fixture(scope="module")
def model() -> mr.MaskRCNN:
    return tiny_model()


def predict(model: mr.MaskRCNN, source: Any, out: str | Path, **settings: Any) -> mr.DatasetSummary:
    settings = {"min_score": MIN_SCORE, "part_size": 3, "progress": False} | settings
    return mr.predict_dataset(model, source, out, **settings)


def test_a_store_gives_and_takes_what_folders_do(
    model: mr.MaskRCNN, photos: Path, store: Any, tmp_path: Path
):
    for shard in ("2/2", "1/2"):
        summary = predict(model, "s3://data/photos", "s3://data/out", shard=shard)
    again = predict(model, "s3://data/photos", "s3://data/out")
    assert (again.old_parts, again.errors) == (again.parts, 1)
    assert summary.notes == ["left out 1 file not read as images: 1 .docx (notes.docx)"]
    mr.collect_parts("s3://data/out", overlays=True, progress=False)

    predictor = mr.Predictor(model, min_score=MIN_SCORE)
    mr.predict_files(predictor, [photos], tmp_path, overlays=False, progress=False)
    assert store.cat_file("data/out/results.json") == (tmp_path / "results.json").read_bytes()
    assert len(store.find("data/out/overlays")) == len(SHAPES)
    with opened_table("s3://data/out/parts/part-00000000.parquet") as table:
        rows = table.read().to_pylist()
    assert rows[0]["location"] == f"s3://data/photos/{rows[0]['key']}"


def test_results_beside_the_images_are_not_read(store: Any):
    store.pipe_file("data/photos/out/overlays/x.png", b"")
    source = open_source("s3://data/photos", out="s3://data/photos/out")
    assert not [row for row in source.rows() if "overlays" in row.key]
    store.rm("data/photos/out", recursive=True)


def test_lists_coco_files_and_tables_in_a_store_name_images_beside_them(
    model: mr.MaskRCNN, store: Any, tmp_path: Path
):
    names = ["b/02.png", "gone.png", BROKEN]
    images = [{"id": n, "file_name": name} for n, name in enumerate(names, start=5)]
    store.pipe_file("data/photos/list.txt", "\n".join(names).encode())
    store.pipe_file("data/photos/coco.json", json.dumps({"images": images}).encode())
    with store.open("data/photos/table.parquet", "wb") as file:
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"path": names}), file)

    for name in ("list.txt", "coco.json", "table.parquet"):
        rows = list(open_source(f"s3://data/photos/{name}").rows())
        assert [row.location for row in rows] == [f"s3://data/photos/{one}" for one in names]
    summary = predict(model, "s3://data/photos/list.txt", tmp_path)
    assert (summary.images, summary.errors) == (1, 2)
    assert summary.first_errors[0] == "s3://data/photos/gone.png: file not found"
    assert summary.first_errors[1].startswith("b/broken.png: cannot be read as an image")
    with pytest.raises(ValueError, match=r"annotations need image files, got s3://"):
        mr.collect_parts(tmp_path, annotations="coco", progress=False)


class _Failing:
    """A store whose reads fail a number of times."""

    def __init__(self, store: Any, failures: int, error: OSError) -> None:
        self.store = store
        self.failures = failures
        self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def cat_file(self, *args: Any, **settings: Any) -> bytes:
        if self.failures:
            self.failures -= 1
            raise self.error
        return self.store.cat_file(*args, **settings)


def fail(monkeypatch: pytest.MonkeyPatch, store: Any, failures: int, error: OSError) -> _Failing:
    failing = _Failing(store, failures, error)
    monkeypatch.setattr(file_stores, "_WAIT", 0)
    monkeypatch.setattr(file_stores, "opened_store", lambda url: (failing, url[len("s3://") :]))
    return failing


def test_a_store_that_refuses_everything_ends_the_job(
    model: mr.MaskRCNN, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"s3://data/photos/{n}.png\n" for n in range(9)))
    fail(monkeypatch, store, 99, PermissionError("Access Denied"))
    with pytest.raises(StoreError, match=r"0\.png: cannot be read: Access Denied"):
        predict(model, listed, tmp_path / "out", part_size=9)


def test_a_short_failure_of_a_store_is_no_error_of_the_image(
    store: Any, monkeypatch: pytest.MonkeyPatch
):
    failing = fail(monkeypatch, store, 1, OSError("Please reduce your request rate"))
    assert read_object(f"s3://data/photos/{BROKEN}") == b"no image"
    assert failing.failures == 0
    with pytest.raises(mr.ImageError, match="more than 0 MB"):
        read_object(f"s3://data/photos/{BROKEN}", most=3)


def test_an_empty_object_is_an_empty_file(store: Any):
    store.pipe_file("data/empty.png", b"")
    assert read_object("s3://data/empty.png") == b""


def test_missing_folders_and_other_schemes_are_refused(store: Any, model: mr.MaskRCNN):
    with pytest.raises(FileNotFoundError, match="s3://data/nothing: file or folder not found"):
        open_source("s3://data/nothing")
    with pytest.raises(ValueError, match="got the scheme ftp"):
        predict(model, "s3://data/photos", "ftp://host/out")
    with pytest.raises(ValueError, match="expected a URL of one store"):
        open_source("s3://data/x::file://etc")
    with pytest.raises(ValueError, match="for single objects, write their URLs into a list"):
        open_source("s3://data/empty.png")
