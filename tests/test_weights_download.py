"""Published weights by name, against a server of our own."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

from maskrcnn.weights import catalog, download
from maskrcnn.weights.catalog import Weights, find, recognize, table, weights
from maskrcnn.weights.download import DownloadError, fetch

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        state = self.server.state
        state.ranges.append(self.headers.get("Range"))
        if self.path != "/toy.pth":
            self.send_error(404)
            return
        start = (
            int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if "Range" in self.headers and state.ranged
            else 0
        )
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        broken = state.breaks.pop(0) if state.breaks else None
        self.wfile.write(body if broken is None else body[:broken])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[SimpleNamespace]:
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.state = state = SimpleNamespace(
            ranges=[], breaks=[], ranged=True, cache=tmp_path / "cache"
        )
        monkeypatch.setattr(catalog, "_TORCHVISION", f"http://127.0.0.1:{httpd.server_address[1]}/")
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield state
        httpd.shutdown()


TOY = Weights("toy", "toy.pth", hashlib.sha256(CONTENT).hexdigest()[:8], 1.0, "CC0", "none")


def test_file_is_fetched_once_with_a_progress_bar(server, capsys):
    path = fetch(TOY)
    assert path == server.cache / "toy.pth"
    assert path.read_bytes() == CONTENT
    assert "toy.pth" in capsys.readouterr().err
    assert fetch(TOY) == path
    assert server.ranges == [None]
    assert not list(server.cache.glob("*.part"))


def test_broken_download_resumes_where_it_stopped(server):
    server.breaks = [300_000, 200_000]
    assert fetch(TOY).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_download_that_keeps_breaking_is_an_error_keeps_the_part_and_the_next_call_finishes(server):
    server.breaks = [100_000, 100_000, 100_000]
    with pytest.raises(
        DownloadError, match=r"closed early.*0\.3 MB are kept; run again.*put it at .*toy\.pth"
    ):
        fetch(TOY)
    assert not (server.cache / "toy.pth").exists()
    assert fetch(TOY).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=300000-"


def test_server_without_ranges_restarts(server):
    server.ranged, server.breaks = False, [1000]
    assert fetch(TOY).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(server):
    server.cache.mkdir()
    (server.cache / "toy.pth.part").write_bytes(CONTENT + b"more")
    assert fetch(TOY).read_bytes() == CONTENT


def test_wrong_content_is_refused_and_removed(server):
    with pytest.raises(DownloadError, match="begins with 00000000"):
        fetch(replace(TOY, sha256="00000000"))
    assert not list(server.cache.glob("toy.pth*"))


def test_wrong_part_is_removed_so_that_the_next_call_succeeds(server):
    server.cache.mkdir()
    (server.cache / "toy.pth.part").write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch(TOY)
    assert fetch(TOY).read_bytes() == CONTENT


def test_damaged_file_in_the_cache_is_detected(server):
    fetch(TOY).write_bytes(b"damaged")
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch(TOY)
    assert fetch(TOY).read_bytes() == CONTENT


def test_missing_file_on_the_server_is_named(server):
    with pytest.raises(DownloadError, match=r"gone\.pth: the server returned 404"):
        fetch(replace(TOY, file="gone.pth"))


def test_offline_error_names_the_address_and_where_to_put_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path))
    monkeypatch.setattr(catalog, "_TORCHVISION", "http://127.0.0.1:9/")
    with pytest.raises(DownloadError) as error:
        fetch(TOY)
    assert "http://127.0.0.1:9/toy.pth" in str(error.value)
    assert f"put it at {tmp_path / 'toy.pth'}" in str(error.value)
    (tmp_path / "toy.pth").write_bytes(CONTENT)  # as the message says
    assert fetch(TOY) == tmp_path / "toy.pth"


def test_two_concurrent_downloads_fetch_one_file(server):
    server.breaks = [500_000]
    threads = [threading.Thread(target=fetch, args=(TOY,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (server.cache / "toy.pth").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=500000-"]


def test_catalog_is_torchvisions():
    import torchvision.models as tv
    from torchvision.models import detection

    enums = [
        detection.MaskRCNN_ResNet50_FPN_Weights,
        detection.MaskRCNN_ResNet50_FPN_V2_Weights,
        detection.KeypointRCNN_ResNet50_FPN_Weights,
    ]
    enums += [
        detection.FasterRCNN_ResNet50_FPN_Weights,
        detection.FasterRCNN_ResNet50_FPN_V2_Weights,
    ]
    enums += [tv.ResNet18_Weights, tv.ResNet50_Weights, tv.ResNet101_Weights]
    published = {member.url: member.meta for enum in enums for member in enum}
    fetched = [w for w in weights() if not (w.shipped or w.package)]
    assert {w.url for w in fetched} == set(published)
    names = {"box_map": "box", "mask_map": "mask", "kp_map": "keypoint", "acc@1": "top1"}
    for record in fetched:
        (metrics,) = published[record.url]["_metrics"].values()
        assert record.metrics == {names[k]: v for k, v in metrics.items() if k in names}
        assert record.url.endswith(f"-{record.sha256}.pth")
        assert record.megabytes == pytest.approx(published[record.url]["_file_size"], abs=0.1)


def test_categories_are_torchvisions():
    from torchvision.models._meta import _COCO_CATEGORIES, _COCO_PERSON_KEYPOINT_NAMES

    assert [
        "__background__",
        *(c.name for c in catalog.coco_categories(unused=True)),
    ] == _COCO_CATEGORIES
    assert len(catalog.coco_categories()) == 80
    assert catalog.coco_categories()[-1].id == 90
    assert list(catalog.person().keypoints) == _COCO_PERSON_KEYPOINT_NAMES
    for j, name in enumerate(catalog.person().keypoints):
        mirrored = name.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")
        assert catalog.person().keypoints[catalog.person().mirrored[j]] == mirrored


def test_names_have_records_and_misspelled_ones_get_suggestions():
    assert find("MaskRCNN-R50-FPN-COCO").sha256 == "bf2d0c1e"
    with pytest.raises(ValueError, match=r"did you mean .*keypointrcnn_r50_fpn_coco"):
        find("keypoint_r50_coco")
    with pytest.raises(
        ValueError, match="published weights; these are nuclei, maskrcnn_r50_fpn_coco"
    ):
        find("x")
    assert recognize("bf2d0c1e" + "0" * 56) == find("maskrcnn_r50_fpn_coco")
    assert recognize("0" * 64) is None


def test_table_shows_every_record():
    text = table()
    assert all(
        w.name in text and (w.shipped or w.url in text) and w.license in text for w in weights()
    )


def test_cache_folder_is_in_the_home_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("MASKRCNN_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / ".cache" / "maskrcnn"
