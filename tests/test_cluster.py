"""Prediction in parts: the same results for any division of the work, and nothing twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_samples import BROKEN, MIN_SCORE, SHAPES, results_of, tiny_model, write_images
from hypothesis import given
from hypothesis import strategies as st

import maskrcnn as mr
from maskrcnn.cli import run

pa = pytest.importorskip("pyarrow", reason="pip install 'maskrcnn[cluster]'")
import pyarrow.parquet as pq  # noqa: E402

from maskrcnn.cluster import file_states, file_stores, image_table, part_worker  # noqa: E402
from maskrcnn.cluster.collect_parts import overlay_name  # noqa: E402
from maskrcnn.cluster.external_sort import sorted_texts  # noqa: E402
from maskrcnn.cluster.file_stores import OutputFolder  # noqa: E402
from maskrcnn.cluster.image_rows import ImageRow, Listing, cut_parts, size_of_part  # noqa: E402
from maskrcnn.cluster.part_files import read_info  # noqa: E402
from maskrcnn.cluster.row_sources import FolderSource, open_source  # noqa: E402
from maskrcnn.cluster.shards import Shard  # noqa: E402

NUM_IMAGES = len(SHAPES)


@pytest.fixture(scope="module")
def model() -> mr.MaskRCNN:
    return tiny_model()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def expected(model: mr.MaskRCNN, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The results.json of one process without parts."""
    out = tmp_path_factory.mktemp("expected")
    predictor = mr.Predictor(model, min_score=MIN_SCORE)
    mr.predict_files(predictor, [photos], out, overlays=False, progress=False)
    data = (out / "results.json").read_bytes()
    assert len(json.loads(data)) > NUM_IMAGES
    return data


def predict(model: mr.MaskRCNN, source: Any, out: Path | str, **settings: Any) -> mr.DatasetSummary:
    settings = {"min_score": MIN_SCORE, "part_size": 2, "progress": False} | settings
    return mr.predict_dataset(model, source, out, **settings)


def collect(out: Path | str, **settings: Any) -> mr.DatasetSummary:
    return mr.collect_parts(out, progress=False, **settings)


def part_times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}


def rows_of(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "parts").to_pylist()


@pytest.mark.parametrize(("shards", "part_size"), [(1, None), (3, 1), (2, 4)])
def test_any_division_gives_the_file_of_one_process(
    model: mr.MaskRCNN, photos: Path, expected: bytes, tmp_path: Path, shards: int, part_size: int
):
    for number in random.Random(0).sample(range(1, shards + 1), shards):
        predict(model, photos, tmp_path, shard=f"{number}/{shards}", part_size=part_size)
    summary = collect(tmp_path)
    assert (tmp_path / "results.json").read_bytes() == expected
    assert (summary.images, summary.errors) == (NUM_IMAGES, 1)
    assert "left out 1 file not read as images: 1 .docx (notes.docx)" in summary.notes


def test_larger_batches_give_the_same_objects_up_to_rounding(
    model: mr.MaskRCNN, photos: Path, expected: bytes, tmp_path: Path
):
    predict(model, photos, tmp_path, batch_size=4, part_size=None, results=True)
    ours, theirs = results_of(tmp_path), json.loads(expected)
    assert [one["image_id"] for one in ours] == [one["image_id"] for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["category_id"] == other["category_id"]
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=0.01)
        assert abs(one["score"] - other["score"]) < 1e-4


@given(
    count=st.integers(0, 300),
    size=st.one_of(st.none(), st.integers(1, 40)),
    shards=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_shards_divide_the_rows_without_gaps_in_any_order(
    count: int, size: int | None, shards: int, seed: int
):
    rows = [ImageRow(f"{n}.png", f"{n}.png", f"/data/{n}.png") for n in range(count)]
    listing = Listing()
    parts = list(cut_parts(rows, size, listing))
    assert [row for part in parts for row in part.rows] == rows
    assert [part.image_id(n) for part in parts for n in range(len(part.rows))] == [
        *range(1, count + 1)
    ]
    owners = [[n for n in range(1, shards + 1) if Shard(n, shards).has(p.index)] for p in parts]
    assert all(len(owner) == 1 for owner in owners)

    random.Random(seed).shuffle(parts)
    again = Listing()
    for part in parts:
        again.add(part.index, len(part.rows), part.digest)
    assert again.is_of(listing)


def test_parts_grow_so_that_a_billion_images_need_few_files():
    assert size_of_part(0, None) == 32
    sizes = [size_of_part(n, None) for n in range(1000)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 4096


def test_a_second_run_repeats_nothing(
    model: mr.MaskRCNN, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = predict(model, photos, tmp_path)
    before = part_times(tmp_path)
    monkeypatch.setattr(mr.Predictor, "stream", None)
    second = predict(model, photos, tmp_path)
    assert part_times(tmp_path) == before
    assert (second.old_parts, second.images, second.objects) == (
        first.parts,
        first.images,
        first.objects,
    )


def test_after_images_were_added_only_those_are_predicted(
    model: mr.MaskRCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    photos = write_images(tmp_path / "photos", 4, broken=False)
    predict(model, photos, tmp_path / "out", part_size=8)
    shutil.copy(photos / "a" / "01.png", photos / "a" / "00_new.png")

    read: list[str] = []
    original = part_worker.read_rows

    def noting(rows: Any, column: Any) -> Any:
        read.extend(row.key for _, row in rows)
        return original(rows, column)

    monkeypatch.setattr(part_worker, "read_rows", noting)
    predict(model, photos, tmp_path / "out", part_size=8)
    assert read == ["a/00_new.png"]
    collect(tmp_path / "out")
    predictor = mr.Predictor(model, min_score=MIN_SCORE)
    mr.predict_files(predictor, [photos], tmp_path / "one", overlays=False, progress=False)
    assert results_of(tmp_path / "out") == results_of(tmp_path / "one")


def test_a_broken_image_is_a_row_with_its_error_and_can_be_retried(
    model: mr.MaskRCNN, tmp_path: Path
):
    photos = write_images(tmp_path / "photos", 4)
    out = tmp_path / "out"
    summary = predict(model, photos, out)
    (row,) = [row for row in rows_of(out) if row["error"]]
    assert row["key"] == BROKEN
    assert row["error"] in summary.first_errors
    assert row["objects"] == []
    assert len(rows_of(out)) == 5

    shutil.copy(photos / "a" / "01.png", photos / BROKEN)
    assert predict(model, photos, out).errors == 1
    assert predict(model, photos, out, retry_errors=True).errors == 0


class _Fragile(mr.Predictor):
    """Fails for images of one shape, with an error that is no image's."""

    fails = staticmethod(lambda size: size == (32, 80))

    def _predict_batch(self, group: Any) -> None:
        if any(self.fails(pending.prepared.size) for pending in group):
            raise RuntimeError("out of memory")
        super()._predict_batch(group)


def test_an_image_that_breaks_its_batch_costs_no_other_image(
    model: mr.MaskRCNN, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(part_worker, "Predictor", _Fragile)
    predict(model, photos, tmp_path, part_size=16, batch_size=2)
    failed = [row for row in rows_of(tmp_path) if row["error"]]
    assert [row["error"].split(":")[0] for row in failed if row["key"] != BROKEN] == [
        "RuntimeError"
    ]


@pytest.mark.parametrize("part_size", [16, 3])
def test_a_fault_of_all_images_ends_the_job_and_leaves_no_part(
    model: mr.MaskRCNN,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part_size: int,
):
    monkeypatch.setattr(part_worker, "Predictor", _Fragile)
    monkeypatch.setattr(_Fragile, "fails", staticmethod(lambda size: True))
    with pytest.raises(RuntimeError, match="out of memory"):
        predict(model, photos, tmp_path, part_size=part_size)
    assert not list(tmp_path.glob("parts/*"))


def test_faults_before_a_success_do_not_count(
    model: mr.MaskRCNN, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(part_worker, "Predictor", _Fragile)
    monkeypatch.setattr(part_worker, "_FAULTS", 2)
    monkeypatch.setattr(_Fragile, "fails", staticmethod(lambda size: size[0] < size[1]))
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{photos}/{name}\n" for name in ("b/00.tif", "a/01.png") * 3))
    assert predict(model, listed, tmp_path / "out", part_size=1).errors == 3


def test_faults_of_parts_that_keep_images_do_not_add_up(
    model: mr.MaskRCNN, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(part_worker, "Predictor", _Fragile)
    monkeypatch.setattr(part_worker, "_FAULTS", 2)
    monkeypatch.setattr(_Fragile, "fails", staticmethod(lambda size: size[0] < size[1]))
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{photos}/{name}\n" for name in ("b/00.tif", "a/01.png") * 3))
    assert predict(model, listed, tmp_path / "out", part_size=2).errors == 3
    again = predict(model, listed, tmp_path / "out", part_size=2, retry_errors=True)
    assert again.errors == 3


def test_a_folder_around_others_is_listed_once(monkeypatch: pytest.MonkeyPatch):
    listed: list[str] = []

    def states_in(folder: str) -> dict[str, Any]:
        listed.append(folder)
        return {}

    monkeypatch.setattr(file_states, "_states_in", states_in)
    states = file_states.CurrentStates()
    for name in ("a/1.png", "a/b/1.png", "a/c.png", "a/d/1.png", "a/e.png", "f/1.png"):
        assert states.of(f"s3://bucket/{name}") is None
    assert listed == [f"s3://bucket/{name}" for name in ("a", "a/b", "a/d", "f")]


def test_a_source_without_images_leaves_nothing(model: mr.MaskRCNN, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.docx").touch()
    with pytest.raises(ValueError, match=r"empty: no images; left out 1 file .*x\.docx"):
        predict(model, tmp_path / "empty", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_results_of_other_settings_are_refused_and_the_difference_is_named(
    model: mr.MaskRCNN, photos: Path, tmp_path: Path
):
    predict(model, photos, tmp_path)
    with pytest.raises(ValueError, match=r"min_score 0\.2 there, 0\.3 now"):
        predict(model, photos, tmp_path, min_score=0.3)
    with pytest.raises(ValueError, match="another model"):
        predict(tiny_model(0), photos, tmp_path)
    with pytest.raises(ValueError, match=r"source .*photos there, .*photos/a now"):
        predict(model, photos / "a", tmp_path)


# Sources


def test_a_list_keeps_its_order_and_names_each_line(
    model: mr.MaskRCNN, photos: Path, tmp_path: Path
):
    listed = photos / "wanted.txt"
    listed.write_text(f"b/02.png\n\n{photos / 'a' / '01.png'}\nmissing.png\nb/02.png\n")
    predict(model, listed, tmp_path)
    listed.unlink()
    assert [row["key"] for row in rows_of(tmp_path)] == [
        "b/02.png",
        str(photos / "a" / "01.png"),
        "missing.png",
        "b/02.png",
    ]
    assert rows_of(tmp_path)[2]["error"] == f"{photos / 'missing.png'}: file not found"
    summary = collect(tmp_path)
    assert summary.notes == ["blank lines: 1", "images that the source lists twice: 1 (b/02.png)"]


def test_binary_data_and_endless_lines_are_no_list(tmp_path: Path):
    for data in (b"\0" * 100, b"a" * 100_000):
        (tmp_path / "x.txt").write_bytes(data)
        with pytest.raises(mr.DataError, match=r"x\.txt, line 1: expected one path or URL"):
            list(open_source(tmp_path / "x.txt").rows())


def test_a_coco_file_without_annotations_gives_its_own_ids(
    model: mr.MaskRCNN, photos: Path, tmp_path: Path
):
    names = {907: "b/02.png", 3: "a\\01.png"}
    images = [{"id": n, "file_name": name, "width": 1, "height": 1} for n, name in names.items()]
    file = tmp_path / "image_info.json"
    file.write_text(json.dumps({"images": images}))
    predict(model, file, tmp_path / "out", images=photos, results=True)
    assert [row["image_id"] for row in rows_of(tmp_path / "out")] == [907, 3]
    assert {one["image_id"] for one in results_of(tmp_path / "out")} == {907, 3}
    assert {one["file_name"] for one in results_of(tmp_path / "out")} == {"b/02.png", "a/01.png"}
    with pytest.raises(ValueError, match="has results of other settings: source"):
        predict(model, file, tmp_path / "out", images=tmp_path)


def test_a_part_whose_footer_is_damaged_is_no_part(tmp_path: Path):
    (tmp_path / "part.parquet").write_bytes(b"PAR1" + bytes(40) + b"\x28\0\0\0PAR1")
    assert read_info(OutputFolder(tmp_path), "part.parquet") is None
    with pytest.raises(mr.DataError, match=r"part\.parquet: expected a parquet table"):
        list(open_source(tmp_path / "part.parquet").rows())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([{"id": 1}], r"images\[0\]: file_name: expected text"),
        ([{"id": 1, "file_name": "a"}] * 2, r"images\[1\]: id 1 occurs twice"),
        ([{"id": 1.5, "file_name": "a"}], "id: expected a whole number"),
        ([3], "expected an object, got int"),
        ({}, 'a list "images"'),
    ],
)
def test_a_wrong_coco_entry_is_named(tmp_path: Path, images: Any, message: str):
    (tmp_path / "x.json").write_text(json.dumps({"images": images}))
    with pytest.raises(mr.DataError, match=message):
        list(open_source(tmp_path / "x.json").rows())


@pytest.mark.parametrize("form", ["bytes", "struct", "paths"])
def test_tables_of_bytes_and_of_paths_give_the_same_objects(
    model: mr.MaskRCNN, photos: Path, tmp_path: Path, form: str
):
    names = ["b/02.png", "a/01.png", BROKEN]
    data = [(photos / name).read_bytes() for name in names]
    columns: dict[str, Any] = {"note": ["x"] * 3}
    if form == "bytes":
        columns |= {"image": pa.array(data, pa.binary()), "file_name": names}
    elif form == "struct":
        columns["image"] = [{"bytes": d, "path": n} for d, n in zip(data, names, strict=True)]
    else:
        columns["path"] = [str(photos / name) for name in names]
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2)

    summary = predict(model, tmp_path / "t.parquet", tmp_path / "out", results=True)
    rows = rows_of(tmp_path / "out")
    assert [Path(row["key"]).name for row in rows] == [Path(name).name for name in names]
    assert summary.notes == ["columns not used: note"]
    assert rows[2]["error"].startswith(rows[2]["location" if form == "paths" else "key"])
    alone = mr.Predictor(model, min_score=MIN_SCORE)(photos / "b/02.png").to_coco()
    ours = [one for one in results_of(tmp_path / "out") if one["image_id"] == 1]
    assert [one["bbox"] for one in ours] == [one["bbox"] for one in alone]
    collect(tmp_path / "out", results=False, overlays=True)
    assert len(list((tmp_path / "out" / "overlays").rglob("*.png"))) == 2


def test_ids_of_a_table_are_kept_and_missing_images_are_rows(
    model: mr.MaskRCNN, photos: Path, tmp_path: Path
):
    (tmp_path / "t").mkdir()
    paths = [str(photos / "b/02.png"), None]
    for n in (0, 1):
        table = pa.table({"id": [n * 2 + 10, n * 2 + 11], "url": paths})
        pq.write_table(table, tmp_path / "t" / f"{n}.parquet")
    predict(model, tmp_path / "t", tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [(row["key"], row["image_id"]) for row in rows] == [(str(n), n) for n in range(10, 14)]
    assert [bool(row["error"]) for row in rows] == [False, True, False, True]


def test_a_table_without_images_lists_its_columns(tmp_path: Path):
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(mr.DataError, match=r"got a \(int64\), b \(string\); name it with"):
        open_source(tmp_path / "t.parquet")
    with pytest.raises(mr.DataError, match="no column c; it has a, b"):
        open_source(tmp_path / "t.parquet", image_column="c")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(mr.DataError, match="expected a parquet table"):
        open_source(tmp_path / "t.parquet")


def test_a_table_that_unpacks_to_far_more_than_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(image_table, "_LARGEST_CHUNK", 1 << 20)
    table = pa.table({"image": [bytes(1 << 20)] * 4, "name": ["a"] * 4})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd", use_dictionary=False)
    message = r"t\.parquet, row group 0: column image: expected at most 1 MiB .*, got 4 MiB; write"
    with pytest.raises(mr.DataError, match=message):
        list(open_source(tmp_path / "t.parquet").rows())


def test_a_value_that_a_table_repeats_is_decoded_a_few_times_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(image_table, "_UNPACKED", 4 << 20)
    pq.write_table(pa.table({"path": ["a" * (1 << 18)] * 256}), tmp_path / "t.parquet")
    pool = pa.system_memory_pool()
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        assert sum(1 for _ in open_source(tmp_path / "t.parquet").rows()) == 256
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 16 << 20  # all would take 64 MB


def test_folders_are_listed_in_the_order_of_predict_files(tmp_path: Path):
    for name in ("a/z.png", "a-b/y.png", "a.png", "B.png", "a/b/c.png", ".hidden/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "overlay.png").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    source = FolderSource(str(tmp_path), str(tmp_path / "out"))
    listed = [row.key for row in source.rows()]
    ordered = sorted(Path(name) for name in listed)
    assert listed == [path.as_posix() for path in ordered]
    assert len(listed) == 5


def test_options_that_do_not_fit_the_source_are_refused(photos: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="image_column: expected a parquet table"):
        open_source(photos, image_column="x")
    with pytest.raises(FileNotFoundError, match="nothing: file or folder not found"):
        open_source(tmp_path / "nothing")
    (tmp_path / "x.csv").touch()
    with pytest.raises(ValueError, match=r"got \.csv; write its column of paths into a list"):
        open_source(tmp_path / "x.csv")
    (tmp_path / "x.txt").write_text("a.png\n")
    with pytest.raises(ValueError, match="expected this as the only source, got 2"):
        open_source([tmp_path / "x.txt", photos])


def test_sorting_and_cutting_hold_a_bounded_number_of_names():
    def peak(count: int) -> int:
        names = (f"{n * 7919 % count:08d}/{n:08d}.jpg" for n in range(count))
        tracemalloc.start()
        rows = (ImageRow(name, name, name) for name in sorted_texts(names, chunk=1_000))
        number = sum(len(part.rows) for part in cut_parts(rows, 100, Listing()))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert number == count
        return highest

    assert peak(24_000) < 600_000  # the names alone take 2 MB


def test_names_are_sorted_also_in_more_files_than_may_be_open():
    names = [f"{n * 7919 % 977}\n\udc80" for n in range(977)]
    assert list(sorted_texts(names, chunk=4)) == sorted(names)


# Collecting


@pytest.fixture
def shards(model: mr.MaskRCNN, photos: Path, tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        predict(model, photos, tmp_path / "out", shard=f"{number}/3")
    return tmp_path / "out"


def test_a_missing_shard_is_named(shards: Path):
    (shards / "shard-2-of-3.json").unlink()
    with pytest.raises(mr.DataError, match=r"missing 1 of 3 shards; run shard 2/3$"):
        collect(shards)


def test_a_missing_part_names_its_shard(shards: Path):
    (shards / "parts" / "part-00000001.parquet").unlink()
    with pytest.raises(
        mr.DataError, match=r"missing 1 of 5 parts: part-00000001\.parquet; run shard 2/3 again"
    ):
        collect(shards)


def test_a_doubled_part_names_both_files(shards: Path):
    parts = shards / "parts"
    shutil.copy(parts / "part-00000001.parquet", parts / "part-00000001 (copy).parquet")
    with pytest.raises(mr.DataError, match=r"there twice: .*\(copy\)\.parquet and .*01\.parquet"):
        collect(shards)


def test_a_damaged_part_is_named_and_made_again(shards: Path, model: mr.MaskRCNN, photos: Path):
    part = shards / "parts" / "part-00000003.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(mr.DataError, match=r"damaged parts: parts/part-00000003\.parquet"):
        collect(shards)
    predict(model, photos, shards, shard="1/3")
    collect(shards)


def test_a_part_of_another_job_is_named(
    shards: Path, model: mr.MaskRCNN, photos: Path, tmp_path: Path
):
    predict(model, photos, tmp_path / "other", min_score=0.3)
    shutil.copy(tmp_path / "other" / "parts" / "part-00000001.parquet", shards / "parts")
    with pytest.raises(mr.DataError, match="other settings: parts/part-00000001"):
        collect(shards)


def test_shards_that_saw_different_images_are_refused(model: mr.MaskRCNN, tmp_path: Path):
    photos = write_images(tmp_path / "photos", 4, broken=False)
    predict(model, photos, tmp_path / "out", shard="1/2")
    shutil.copy(photos / "a" / "01.png", photos / "a" / "9.png")
    predict(model, photos, tmp_path / "out", shard="2/2")
    with pytest.raises(mr.DataError, match=r"has changed .*\(1/2: 4 images, 2/2: 5 images\)"):
        collect(tmp_path / "out")


def test_parts_that_the_source_no_longer_has_are_left_out_and_named(
    model: mr.MaskRCNN, tmp_path: Path
):
    photos = write_images(tmp_path / "photos", 6, broken=False)
    predict(model, photos, tmp_path / "out")
    for path in sorted((photos / "b").iterdir()):
        path.unlink()
    predict(model, photos, tmp_path / "out")
    summary = collect(tmp_path / "out")
    assert summary.images == 3
    assert "left out parts that the source no longer has: 1 (" in summary.notes[0]


def test_shards_of_machines_without_a_common_disk_are_joined(
    model: mr.MaskRCNN, photos: Path, expected: bytes, tmp_path: Path
):
    for number in (1, 2):
        predict(model, photos, tmp_path / f"node{number}", shard=f"{number}/2")
    collect(tmp_path)
    assert (tmp_path / "results.json").read_bytes() == expected


def test_half_written_files_of_killed_processes_are_removed_and_those_of_living_ones_kept(
    shards: Path,
):
    for folder in (shards / "parts", shards):
        for name, age in (("old", 4000), ("new", 0)):
            partial = folder / f".partial-host-1-{name}-x.parquet"
            partial.touch()
            os.utime(partial, (time.time() - age,) * 2)
    summary = collect(shards)
    kept = sorted(str(path.relative_to(shards)) for path in shards.rglob(".partial-*"))
    assert kept == [".partial-host-1-new-x.parquet", "parts/.partial-host-1-new-x.parquet"]
    assert f"left files that a process may still be writing: 2 ({', '.join(kept)})" in summary.notes


def test_images_changed_under_their_name_are_counted_and_predicted_again(
    model: mr.MaskRCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    photos = write_images(tmp_path / "photos", 4, broken=False)
    out = tmp_path / "out"
    predict(model, photos, out)
    row = rows_of(out)[0]
    status = (photos / "a" / "01.png").stat()
    assert (row["key"], row["file_size"]) == ("a/01.png", status.st_size)
    assert row["modified"].timestamp() == pytest.approx(status.st_mtime, abs=1e-5)
    assert collect(out).notes == []

    shutil.copy(photos / "b" / "02.png", photos / "a" / "01.png")
    (photos / "b" / "02.png").unlink()
    changed, gone = collect(out).notes
    assert changed.startswith("images whose files have changed since they were predicted: 1 (a/01")
    assert gone == "images whose files are not found here: 1 (b/02.png)"
    assert collect(out, changes=False).notes == []

    shutil.copy(photos / "a" / "01.png", photos / "b" / "02.png")
    before = part_times(out)
    predict(model, photos, out, retry_changed=True)
    assert [part_times(out)[name] == before[name] for name in sorted(before)] == [False, False]
    assert collect(out).notes == []
    before = part_times(out)
    predict(model, photos, out, retry_changed=True)
    assert part_times(out) == before


def test_a_folder_of_a_store_tells_size_and_time_of_its_images(
    model: mr.MaskRCNN, photos: Path, tmp_path: Path
):
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(photos / "a"), "/changes/photos", recursive=True)
    url = "memory://changes/photos"
    predict(model, url, tmp_path, part_size=16)
    assert collect(tmp_path).notes[1:] == []
    data = store.cat_file("/changes/photos/03.tif")
    store.pipe_file("/changes/photos/03.tif", data)
    (note,) = collect(tmp_path).notes[1:]
    assert note.startswith("images whose files have changed since they were predicted: 1 (03.tif)")

    (tmp_path / "list.txt").write_text(f"{url}/01.png\n")
    predict(model, tmp_path / "list.txt", tmp_path / "out")
    (note,) = collect(tmp_path / "out").notes
    assert note == f"images whose size and time were not known: 1 ({url}/01.png)"
    summary = predict(model, tmp_path / "list.txt", tmp_path / "out", retry_changed=True)
    (remark,) = summary.remarks()
    assert remark.startswith("images that were kept although they may have changed")
    assert f"unknown: 1 ({url}/01.png)" in remark
    store.rm("/changes", recursive=True)


def test_a_store_that_shows_unfinished_files_gets_them_whole(monkeypatch: pytest.MonkeyPatch):
    from fsspec.implementations.memory import MemoryFileSystem

    class Unfinished(MemoryFileSystem):
        """A store like HDFS, on which a writer is killed in the middle of a file."""

        protocol = "unfinished"
        fails = False

        def pipe_file(self, path: str, value: bytes, **settings: Any) -> None:
            super().pipe_file(path, value[:2] if self.fails else value, **settings)
            if self.fails:
                raise KeyboardInterrupt

    store = Unfinished()
    monkeypatch.setattr(file_stores, "opened_store", lambda url: (store, "/unfinished/out"))
    folder = OutputFolder("hdfs://host/unfinished/out")
    folder.write("x.json", b"first")
    folder.write("x.json", b"second")
    with folder.replacing("y.json") as partial:
        partial.write_bytes(b"y")
    store.fails = True
    with pytest.raises(KeyboardInterrupt):
        folder.write("x.json", b"third")
    assert (folder.read("x.json"), folder.read("y.json")) == (b"second", b"y")
    assert sorted(store.ls("/unfinished/out", detail=False)) == [
        "/unfinished/out/x.json",
        "/unfinished/out/y.json",
    ]

    store.fails = False
    store.pipe_file("/unfinished/out/parts/.partial-host-1-abc-x", b"x")
    kept = folder.remove_abandoned(["parts", "never made"])
    assert kept == ["parts/.partial-host-1-abc-x"]
    monkeypatch.setattr(file_stores, "_ABANDONED", timedelta(0))
    assert folder.remove_abandoned(["parts"]) == []
    assert folder.read("parts/.partial-host-1-abc-x") is None
    store.rm("/unfinished", recursive=True)


def test_annotations_and_overlays_are_those_of_predict_files(
    model: mr.MaskRCNN, photos: Path, tmp_path: Path
):
    predictor = mr.Predictor(model, min_score=MIN_SCORE)
    mr.predict_files(predictor, [photos], tmp_path / "one", annotations="coco", progress=False)
    predict(model, photos, tmp_path / "out", annotations="coco", overlays=True)

    def content(out: str) -> dict[str, Any]:
        return json.loads((tmp_path / out / "coco" / "annotations.json").read_text())

    assert content("out") == content("one")
    overlays = {p.relative_to(tmp_path / "out" / "overlays") for p in images_in(tmp_path / "out")}
    assert len(overlays) == NUM_IMAGES
    assert Path("a/01.png") in overlays
    assert Path("b/00.tif.png") in overlays


def images_in(out: Path) -> Iterator[Path]:
    return (p for p in (out / "overlays").rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/b.tif", "a/b.tif.png"),
        ("../../etc/x.jpg", "etc/x.jpg"),
        ("/etc/x.PNG", "etc/x.PNG"),
        ("s3://bucket/x", "bucket/x.png"),
        ("C:\\x\\y.jpeg", "x/y.jpeg"),
        ("..", "image.png"),
    ],
)
def test_overlays_stay_below_their_folder_whatever_a_list_says(name: str, path: str):
    assert overlay_name(name) == path


# The command


def test_the_command_writes_shards_and_collects_them(
    model: mr.MaskRCNN, photos: Path, expected: bytes, tmp_path: Path, capsys: Any
):
    mr.save(model, tmp_path / "m.safetensors")
    words = ["predict", str(tmp_path / "m.safetensors"), str(photos), "--out", str(tmp_path / "o")]
    words += ["--min-score", str(MIN_SCORE), "--part-size", "2", "--device", "cpu"]
    assert run([*words, "--shard", "2/2"]) == 0
    assert run(["collect", str(tmp_path / "o")]) == 2
    assert "run shard 1/2" in capsys.readouterr().err
    assert run([*words, "--shard", "1/2"]) == 1
    assert "Skipped: " in capsys.readouterr().err
    assert run(["collect", str(tmp_path / "o")]) == 1
    assert (tmp_path / "o" / "results.json").read_bytes() == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shard", "0/8"], "add 1 to an index that starts at 0"),
        (["--shard", "9/8"], "expected 1/8 to 8/8, got 9/8"),
        (["--shard", "a"], "expected i/n such as 3/8"),
        (["--shard", "1/2", "--ray"], "expected no shard, since Ray divides the work"),
        (["--workers", "2"], "--workers: expected --shard or --ray with it"),
        (["--shard", "1/2", "--workers", "2"], "expected only with ray=True"),
        (["--shard", "1/2", "--format", "coco"], "maskrcnn collect"),
        (["--shard", "1/2", "--enlarge"], "use maskrcnn collect"),
        (["--shard", "1/2", "--part-size", "0"], "part_size: expected at least 1, got 0"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, capsys: Any, flags: list[str], message: str
):
    assert run(["predict", "nuclei", str(photos), "--out", str(tmp_path / "o"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_killed_shard_goes_on_where_it_was(
    model: mr.MaskRCNN, photos: Path, expected: bytes, tmp_path: Path
):
    mr.save(model, tmp_path / "m.safetensors")
    out = tmp_path / "out"
    script = (
        "import sys, time, maskrcnn as mr\n"
        "from maskrcnn.cluster.part_worker import PartWorker\n"
        "work = PartWorker.__call__\n"
        "PartWorker.__call__ = lambda self, part: (time.sleep(0.2), work(self, part))[1]\n"
        f"mr.predict_dataset(sys.argv[1], sys.argv[2], sys.argv[3], min_score={MIN_SCORE}, "
        "part_size=1, device='cpu', progress=False)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "m.safetensors"), str(photos), str(out)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob("parts/part-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = part_times(out)
    assert 3 <= len(before) < NUM_IMAGES

    summary = predict(mr.load(tmp_path / "m.safetensors"), photos, out, part_size=1, results=True)
    assert summary.old_parts == len([name for name in before if name.startswith("part-")])
    assert {name: part_times(out)[name] for name in before if name[0] == "p"} == {
        name: when for name, when in before.items() if name[0] == "p"
    }
    assert (out / "results.json").read_bytes() == expected
