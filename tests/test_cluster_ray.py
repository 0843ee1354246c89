"""The same parts from Ray's workers, also when a worker or the driver is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_samples import MIN_SCORE, SHAPES, tiny_model, write_images

import maskrcnn as mr

pytest.importorskip("pyarrow", reason="pip install 'maskrcnn[cluster]'")
ray = pytest.importorskip("ray", reason="pip install 'maskrcnn[cluster]'")

from maskrcnn.cluster.file_stores import OutputFolder  # noqa: E402
from maskrcnn.cluster.image_rows import ImageRow, Listing, cut_parts  # noqa: E402
from maskrcnn.cluster.part_files import PartInfo, read_info  # noqa: E402
from maskrcnn.cluster.ray_engine import bundles  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, not ours

COUNT = 3 * len(SHAPES)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """One Ray for all tests here; its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        context = ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=80 << 20,
            log_to_driver=False,
            logging_level="error",
        )
        yield context.address_info["address"]
        ray.shutdown()


@pytest.fixture(scope="module")
def model() -> mr.MaskRCNN:
    return tiny_model()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "photos", COUNT)


@pytest.fixture(scope="module")
def expected(model: mr.MaskRCNN, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("expected")
    predictor = mr.Predictor(model, min_score=MIN_SCORE)
    mr.predict_files(predictor, [photos], out, overlays=False, progress=False)
    return (out / "results.json").read_bytes()


def predict(model: Any, source: Any, out: Path, **settings: Any) -> mr.DatasetSummary:
    settings = {"min_score": MIN_SCORE, "part_size": 2, "progress": False, "ray": True} | settings
    return mr.predict_dataset(model, source, out, **settings)


def infos(out: Path) -> dict[str, PartInfo]:
    folder = OutputFolder(out)
    names = list(folder.names(".parquet", deep=True))
    return {name: info for name in names if (info := read_info(folder, name))}


def wait_for_parts(out: Path, count: int) -> None:
    deadline = time.monotonic() + 180
    while len(list(out.glob("parts/part-*"))) < count:
        assert time.monotonic() < deadline, "no parts after three minutes"
        time.sleep(0.02)


def test_two_workers_of_which_one_is_killed_write_what_one_process_writes(
    cluster: str, model: mr.MaskRCNN, photos: Path, expected: bytes, tmp_path: Path
):
    script = Path(__file__).with_name("kill_first_worker.py")
    killer = subprocess.Popen([sys.executable, str(script), str(tmp_path / "parts")])
    summary = predict(model, photos, tmp_path, workers=2, part_size=1, results=True)
    assert killer.wait(180) == 0
    assert len({info.computer for info in infos(tmp_path).values()}) >= 2
    assert (tmp_path / "results.json").read_bytes() == expected
    assert (summary.images, summary.errors) == (COUNT, 1)
    assert summary.notes == ["left out 1 file not read as images: 1 .docx (notes.docx)"]


def test_a_driver_that_is_killed_goes_on_and_repeats_nothing(
    cluster: str, model: mr.MaskRCNN, photos: Path, expected: bytes, tmp_path: Path
):
    mr.save(model, tmp_path / "m.safetensors")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "maskrcnn", "predict", str(tmp_path / "m.safetensors")]
    command += [str(photos), "--out", str(out), "--ray", "--workers", "1", "--part-size", "1"]
    command += ["--min-score", str(MIN_SCORE)]
    driver = subprocess.Popen(
        command, env=os.environ | {"RAY_ADDRESS": cluster}, stderr=subprocess.DEVNULL
    )
    wait_for_parts(out, 2)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(1)  # Ray ends the workers of a driver that is gone
    before = {path: path.stat().st_mtime_ns for path in out.glob("parts/part-*")}
    assert 2 <= len(before) <= COUNT
    assert not (out / "shard-1-of-1.json").exists()

    loaded = mr.load(tmp_path / "m.safetensors")
    summary = predict(loaded, photos, out, workers=1, part_size=1, results=True)
    assert summary.old_parts == len(before)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "results.json").read_bytes() == expected


def test_an_error_of_a_worker_or_of_the_listing_is_reported_as_itself(
    cluster: str, model: mr.MaskRCNN, photos: Path, tmp_path: Path
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "parts").touch()
    with pytest.raises(OSError, match=r"Not a directory: .*parts"):
        predict(model, photos, tmp_path / "full", workers=1)
    (tmp_path / "list.txt").write_bytes(b"a.png\n" * 3 + b"\0\n")
    with pytest.raises(mr.DataError, match=r"line 4: expected one path or URL per line"):
        predict(model, tmp_path / "list.txt", tmp_path / "out")


def test_large_sources_have_few_tasks_so_that_the_driver_stays_small():
    listing = Listing()
    rows = (ImageRow(f"{n}", f"{n}", None) for n in range(20_000))
    sizes = [len(parts) for parts in bundles(cut_parts(rows, 1, listing))]
    assert sum(sizes) == listing.parts == 20_000
    assert sizes[:512] == [1] * 512
    assert sizes == [*sorted(sizes[:-1]), sizes[-1]]
    assert (max(sizes), len(sizes)) == (16, 2048 + -(-(20_000 - 512 * 15) // 16))


def test_more_than_the_cluster_has_is_refused(
    cluster: str, model: mr.MaskRCNN, photos: Path, tmp_path: Path
):
    with pytest.raises(ValueError, match="expected at most the 2 CPUs and 0 GPUs of Ray, got 3"):
        predict(model, photos, tmp_path, worker_cpus=3)
    with pytest.raises(ValueError, match="got 1 and 1"):
        predict(model, photos, tmp_path, worker_gpus=1)
