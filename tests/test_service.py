"""The service: what it answers to requests, in this process, with a tiny model."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_model import nuclei_with_keypoints
from PIL import Image
from service_client import POISON, RecordingPredictor, ServiceClient, form, png

import maskrcnn as mr
from maskrcnn.annotations import rle
from maskrcnn.annotations.contours import fill
from maskrcnn.service.json_log import JsonLines, log
from maskrcnn.synthetic.micrograph import draw_micrograph

Start = Callable[..., ServiceClient]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts services, and stops them after the test."""
    started: list[ServiceClient] = []

    def start_one(predictor: mr.Predictor | None = None, **settings: Any) -> ServiceClient:
        started.append(ServiceClient(predictor or RecordingPredictor(), **settings))
        return started[-1]

    yield start_one
    for client in started:
        client.close()


@pytest.fixture(scope="module")
def nuclei() -> Iterator[ServiceClient]:
    """A service of a model that finds nuclei, and has a keypoint head."""
    client = ServiceClient(mr.Predictor(nuclei_with_keypoints()))
    yield client
    client.close()


@pytest.fixture(scope="module")
def micrograph() -> bytes:
    file = io.BytesIO()
    Image.fromarray(draw_micrograph(0, (96, 128))[0]).save(file, "PNG")
    return file.getvalue()


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["id"] == response.headers["x-request-id"]
    return error


def test_the_response_is_the_prediction_as_a_coco_file(
    nuclei: ServiceClient, micrograph: bytes, tmp_path: Path
):
    response = nuclei.post("/predict?min_score=0.3", **form(micrograph)).json()
    expected = nuclei.service.predictor(micrograph).filter(min_score=0.3)
    objects = response["annotations"]
    assert len(objects) == len(expected) > 3
    for entry, ours in zip(objects, expected.to_coco(), strict=True):
        assert entry["bbox"] == ours["bbox"]
        assert entry["score"] == pytest.approx(ours["score"], abs=1e-6)
        assert entry["segmentation"] == ours["segmentation"]
        assert entry["area"] == rle.area(entry["segmentation"])
        assert entry["category_name"] == "nucleus"
    assert response["images"] == [
        {"id": 1, "file_name": "0.png", "width": 128, "height": 96, "notes": []}
    ]

    # a tool for COCO reads it as it is
    (tmp_path / "0.png").write_bytes(micrograph)
    (tmp_path / "response.json").write_text(json.dumps(response))
    dataset = mr.load_dataset(tmp_path / "response.json", images=tmp_path)
    assert len(dataset[0].annotations) == len(objects)
    assert not dataset.warnings


def test_polygons_have_holes_and_fill_to_the_mask(nuclei: ServiceClient, micrograph: bytes):
    as_rle = nuclei.post("/predict?masks=rle", **form(micrograph)).json()["annotations"]
    as_polygons = nuclei.post("/predict?masks=polygons", **form(micrograph)).json()["annotations"]
    for mask, entry in zip(as_rle, as_polygons, strict=True):
        assert "segmentation" not in entry
        outer = fill([np.array(p["exterior"]) for p in entry["polygons"]], (96, 128))
        holes = sum(
            rle.area(fill([np.array(hole)], (96, 128)))
            for polygon in entry["polygons"]
            for hole in polygon["holes"]
        )
        assert rle.area(outer) - holes == mask["area"] == entry["area"]
    simple = nuclei.post("/predict?masks=polygons&simplify=2", **form(micrograph)).json()
    assert len(str(simple)) < len(str(as_polygons))
    none = nuclei.post("/predict?masks=none", **form(micrograph)).json()["annotations"][0]
    assert "segmentation" not in none
    assert "polygons" not in none


def test_keypoints_are_written_by_name_and_as_coco(nuclei: ServiceClient, micrograph: bytes):
    entry = nuclei.post(**form(micrograph)).json()["annotations"][0]
    by_name = entry["keypoints_by_name"]
    assert list(by_name) == ["top", "left", "right"]
    for n, point in enumerate(by_name.values()):
        x, y, visibility = entry["keypoints"][3 * n : 3 * n + 3]
        if point["score"] >= 0.05:
            assert (x, y, visibility) == pytest.approx((point["x"] - 0.5, point["y"] - 0.5, 2))
        else:
            assert (x, y, visibility) == (0, 0, 0)
    assert entry["num_keypoints"] == entry["keypoints"][2::3].count(2)


def test_several_images_are_answered_in_their_order(start: Start):
    response = start().post(**form(png((48, 64)), png((50, 30)), png((64, 64)))).json()
    sizes = [(image["id"], image["width"], image["height"]) for image in response["images"]]
    assert sizes == [(1, 64, 48), (2, 30, 50), (3, 64, 64)]
    assert [entry["id"] for entry in response["annotations"]] == list(
        range(1, len(response["annotations"]) + 1)
    )


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "IMAGE/PNG; q=1"])
def test_raw_bytes_are_an_image(start: Start, kind: str):
    response = start().post(content=png(), headers={"Content-Type": kind})
    assert response.json()["images"][0]["width"] == 64


def test_json_holds_images_as_base64(start: Start):
    text = base64.b64encode(png()).decode()
    images = [{"name": "C:\\a\\cells.png", "data": text}, {"data": f"data:image/png;base64,{text}"}]
    response = start().post(json={"images": images}).json()
    assert [image["file_name"] for image in response["images"]] == ["cells.png", "image-2"]


def test_exif_gray_and_16_bit_images_are_read_as_predict_reads_them(
    nuclei: ServiceClient, micrograph: bytes
):
    image = Image.open(io.BytesIO(micrograph)).convert("L")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(turned, "PNG", exif=exif)
    deep = io.BytesIO()
    Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(deep, "PNG")
    response = nuclei.post(**form(turned.getvalue(), deep.getvalue())).json()

    sizes = [(image["width"], image["height"]) for image in response["images"]]
    assert sizes == [(96, 128), (128, 96)]
    for number, data in enumerate((turned.getvalue(), deep.getvalue()), start=1):
        expected = nuclei.service.predictor(data).filter(min_score=0.5)
        ours = [entry for entry in response["annotations"] if entry["image_id"] == number]
        assert [entry["bbox"] for entry in ours] == [entry["bbox"] for entry in expected.to_coco()]


def test_further_frames_are_noted(start: Start):
    frames = [Image.new("L", (40, 40), level) for level in (0, 100, 200)]
    file = io.BytesIO()
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    (image,) = start().post(**form(file.getvalue())).json()["images"]
    assert image["notes"] == ["several frames, the first is used"]


def test_a_score_below_the_models_is_noted(start: Start):
    (image,) = start().post("/predict?min_score=0", **form(png())).json()["images"]
    assert image["notes"] == ["the model reports no objects below a score of 0.05"]


def test_one_pixel_is_an_image_without_objects(nuclei: ServiceClient):
    response = nuclei.post(**form(png((1, 1))))
    assert response.status_code == 200
    assert response.json()["annotations"] == []


def test_the_overlay_comes_in_the_response_or_alone(nuclei: ServiceClient, micrograph: bytes):
    (image,) = nuclei.post("/predict?overlay=true", **form(micrograph)).json()["images"]
    inside = base64.b64decode(image["overlay"])
    alone = nuclei.post(**form(micrograph), headers={"Accept": "image/png"})
    assert alone.headers["content-type"] == "image/png"
    assert alone.content == inside
    assert Image.open(io.BytesIO(inside)).size == (128, 96)
    two = nuclei.post(**form(micrograph, micrograph), headers={"Accept": "image/png"})
    assert "expected one image, got 2" in error_of(two, 406)["message"]


def test_info_names_the_categories_with_colors(nuclei: ServiceClient):
    info = nuclei.get("/info").json()
    assert info["categories"] == [
        {
            "id": 7,
            "name": "nucleus",
            "color": "#ff4040",
            "keypoints": ["top", "left", "right"],
            "skeleton": [[1, 2], [1, 3]],
        }
    ]
    assert (info["has_masks"], info["has_keypoints"], info["min_score"]) == (True, True, 0.5)
    assert info["limits"] == {
        "max_bytes": 64 << 20,
        "max_pixels": 50_000_000,
        "max_files": 16,
        "timeout": 60.0,
    }
    assert not info["api_key_required"]


def test_requests_at_the_same_time_share_batches_of_one_shape(start: Start):
    predictor = RecordingPredictor()
    client = start(predictor, max_batch=4, max_wait=0.2)
    predictor.batches.clear()
    sizes = [(48, 64), (48, 64), (48, 64), (48, 64), (64, 48), (64, 48)]
    responses = client.together([form(png(size, n)) for n, size in enumerate(sizes)])
    assert [response.status_code for response in responses] == [200] * 6
    assert sorted(predictor.batches) == [2, 4]
    expected = [predictor(png(size, n)).filter(min_score=0.5) for n, size in enumerate(sizes)]
    assert [len(response.json()["annotations"]) for response in responses] == list(
        map(len, expected)
    )


def test_an_exported_file_is_served(start: Start, exported: Any, micrograph: bytes):
    client = start(mr.Predictor(exported.path), max_wait=0.2)
    responses = client.together([form(micrograph), form(micrograph)])
    counts = [len(response.json()["annotations"]) for response in responses]
    assert counts == [len(mr.Predictor(exported.path)(micrograph).filter(min_score=0.5))] * 2
    assert counts[0] > 3


def test_a_crash_answers_one_request_and_the_log_explains_its_id(
    start: Start, caplog: pytest.LogCaptureFixture
):
    client = start(max_wait=0.2)
    caplog.set_level(logging.INFO, "maskrcnn.service")
    predictor = client.service.predictor
    shapes = {predictor.padded_shape(predictor.prepare(png(size))) for size in (POISON, (48, 64))}
    assert len(shapes) == 1
    bad, good = client.together([form(png(POISON)), form(png((48, 64)))])
    assert good.status_code == 200
    error = error_of(bad, 500)
    assert "poisoned" not in error["message"]
    (crash,) = [r for r in caplog.records if r.getMessage() == "crash"]
    assert crash.fields["id"] == error["id"]  # ty: ignore[unresolved-attribute]
    assert "poisoned" in str(crash.exc_info)
    assert client.post(**form(png())).status_code == 200
    assert client.get("/health").status_code == 200


def test_metrics_count_requests_images_and_batches(start: Start):
    client = start()
    client.post(**form(png(), png()))
    client.post(content=b"")
    text = client.get("/metrics").text
    assert 'maskrcnn_requests_total{path="/predict",status="200"} 1.0' in text
    assert 'maskrcnn_requests_total{path="/predict",status="415"} 1.0' in text
    assert "maskrcnn_images_total 2.0" in text
    assert "maskrcnn_queue_images 0.0" in text
    assert "process_cpu_seconds_total" in text


def test_a_log_line_is_json_and_has_no_content(start: Start, caplog: pytest.LogCaptureFixture):
    client = start()
    caplog.set_level(logging.INFO, "maskrcnn.service")
    image = png()
    client.post(**form(image), headers={"X-Request-ID": "mine-1"})
    (record,) = [r for r in caplog.records if r.getMessage() == "request"]
    entry = json.loads(JsonLines().format(record))
    assert {name: entry[name] for name in ("id", "path", "status", "images")} == {
        "id": "mine-1",
        "path": "/predict",
        "status": 200,
        "images": 1,
    }
    assert entry["bytes"] > len(image)
    log("no fields", nothing=None)
    assert json.loads(JsonLines().format(caplog.records[-1])).keys() == {"time", "level", "event"}


def test_the_docs_load_nothing_from_elsewhere(start: Start):
    client = start()
    page = client.get("/docs")
    assert "keypoints_by_name.NAME.x" in page.text
    assert "http" not in page.text.replace("http://127.0.0.1:8000/predict", "").replace("HTTP", "")
    assert client.get("/docs.css").headers["content-type"].startswith("text/css")
    description = client.get("/openapi.json").json()
    assert description["paths"].keys() == {"/predict", "/info", "/health", "/metrics"}
    schema = description["paths"]["/predict"]["post"]["responses"]["200"]["content"]
    image = schema["application/json"]["schema"]["properties"]["images"]["items"]
    assert "overlay" not in image["required"]


def test_every_response_has_the_strict_headers(start: Start):
    client = start()
    for response in (client.get("/info"), client.get("/absent"), client.post()):
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("sent", ["/cells/index.html", "/index.html", "/cells/", "/"])
def test_the_page_is_served_behind_a_prefix(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sent: str
):
    (tmp_path / "index.html").write_text("the page")
    monkeypatch.setattr("maskrcnn.service.app.PAGE", tmp_path)
    client = start(root_path="/cells")
    assert client.get(sent).text == "the page"
    assert client.get("/cells").headers["location"] == "/cells/"
    assert client.get("/cells/info").json() == client.get("/info").json()


def test_settings_of_the_predictor_bound_requests(start: Start):
    client = start(RecordingPredictor(max_pixels=1000))
    assert client.get("/info").json()["limits"]["max_pixels"] == 1000
    assert error_of(client.post(**form(png())), 413)["limit"]["value"] == 1000


def test_the_state_is_reported_by_health(start: Start):
    client = start()
    assert client.get("/health").json() == {"status": "ready"}
    client.run(_stop_receiving(client))
    response = client.get("/health")
    assert (response.status_code, response.json()) == (503, {"status": "stopping"})
    stopped = client.post(**form(png()))
    assert error_of(stopped, 503)["code"] == "stopping"
    assert stopped.headers["retry-after"] == "1"


async def _stop_receiving(client: ServiceClient) -> None:
    client.service.stop_receiving()


def test_a_model_that_hangs_is_not_healthy(start: Start):
    client = start(RecordingPredictor(seconds=0.3), timeout=0.05)
    error = error_of(client.post(**form(png())), 504)
    time.sleep(0.1)
    assert error["limit"] == {"name": "timeout", "value": 0.05, "flag": "--timeout"}
    assert client.get("/health").json() == {"status": "busy too long"}


def test_a_model_that_always_fails_is_not_healthy(start: Start, monkeypatch: pytest.MonkeyPatch):
    client = start()
    assert client.post(**form(png(POISON))).status_code == 500
    assert client.get("/health").status_code == 200  # it failed on one image only
    monkeypatch.setattr(client.service.predictor, "collate", None)
    assert client.post(**form(png())).status_code == 500
    assert client.get("/health").json() == {"status": "failed"}


def test_a_client_that_is_gone_costs_no_prediction(start: Start, caplog: pytest.LogCaptureFixture):
    client = start(max_wait=0.3)
    predictor = client.service.predictor
    assert isinstance(predictor, RecordingPredictor)
    predictor.batches.clear()
    caplog.set_level(logging.INFO, "maskrcnn.service")
    messages = iter([{"type": "http.request", "body": png()}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"image/png")],
    }
    client.run(client.app(scope, receive, send))
    assert caplog.records[-1].fields["status"] == 499  # ty: ignore[unresolved-attribute]
    time.sleep(0.4)
    assert predictor.batches == []
    assert client.service.images == 0


def test_settings_out_of_range_name_their_flag():
    from maskrcnn.service.service_settings import ServiceSettings

    for name, value in {
        "min_score": 2,
        "max_batch": 0,
        "max_wait": -1,
        "timeout": 0,
        "max_queue": 3,
        "root_path": "cells/",
    }.items():
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}: expected"):
            replace(ServiceSettings(), **{name: value})


def test_a_service_within_another_application_starts_with_its_first_request():
    fastapi = pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    from maskrcnn.service.app import create_app

    outer = fastapi.FastAPI()
    app = create_app(RecordingPredictor(), name="tiny")
    outer.mount("/cells", app)

    async def work() -> list[int]:
        transport = httpx.ASGITransport(outer)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            first = [client.post("/cells/predict", **form(png())), client.get("/cells/health")]
            responses = [*await asyncio.gather(*first), await client.get("/cells/docs.css")]
        await app.service.stop()
        return [response.status_code for response in responses]

    assert asyncio.run(work()) == [200, 200, 200]


def test_a_failed_start_within_another_application_is_tried_again(monkeypatch, caplog):
    fastapi = pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    from maskrcnn.service import prediction_service
    from maskrcnn.service.app import create_app

    predictor = RecordingPredictor()
    model = predictor.predict_prepared
    tries: list[int] = []

    def fails(images: Sequence[PreparedImage]) -> list[mr.Instances]:
        tries.append(len(images))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(predictor, "predict_prepared", fails)
    monkeypatch.setattr(prediction_service, "START_AGAIN", 60.0)
    outer = fastapi.FastAPI()
    app = create_app(predictor, name="tiny")
    outer.mount("/cells", app)

    async def work() -> None:
        transport = httpx.ASGITransport(outer)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            refused = await client.post("/cells/predict", **form(png()))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "failed")
            assert refused.headers["Retry-After"] == "60"
            health = await client.get("/cells/health")
            assert (health.status_code, health.json()) == (503, {"status": "failed"})
            assert tries == [1]

            monkeypatch.setattr(predictor, "predict_prepared", model)
            monkeypatch.setattr(prediction_service, "START_AGAIN", 0.0)
            answered = await client.post("/cells/predict", **form(png()))
            assert answered.status_code == 200
            assert (await client.get("/cells/health")).json() == {"status": "ready"}
        await app.service.stop()

    asyncio.run(work())
    (failed,) = [record for record in caplog.records if record.getMessage() == "start failed"]
    assert failed.fields["reason"] == "out of memory"  # ty: ignore[unresolved-attribute]
