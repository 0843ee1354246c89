"""The page is one file without links that shows counts, kinds of problems, charts and images."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from coco_samples import content, write

from maskrcnn.dataset_checks.check_charts import bars, heat_map, histogram, image_sizes
from maskrcnn.dataset_checks.check_dataset import check_dataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "home"))


@pytest.fixture
def page(tmp_path: Path) -> str:
    data = content()
    data["categories"][1]["name"] = "<b>ox & co</b>"
    data["annotations"] += [
        {"id": 7, "image_id": 70, "category_id": 4, "bbox": [5, 5, -3, 4]},
        {"id": 8, "image_id": 70, "category_id": 4, "bbox": [900, 5, 3, 4]},
        {"id": 9, "image_id": 71, "category_id": 4, "bbox": [70, 50, 30, 30]},
    ]
    path = write(tmp_path, data)
    check_dataset(
        path, val=path, fix=tmp_path / "fixed.json", html=tmp_path / "report" / "page.html"
    )
    return (tmp_path / "report" / "page.html").read_text()


def test_the_page_is_self_contained(page: str):
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s)>]+)""", page)
    assert links
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert "<script" not in page


def test_every_kind_is_listed_with_its_problems_and_names_cannot_break_the_page(page: str):
    for text in (
        "box without area",
        "annotation 7 (0.png)",
        "box reaches beyond the image",
        "Fixed",
        "Training: samples",
        "Validation: statistics",
    ):
        assert text in page
    assert page.count("regions to ignore (crowds) (1): ") == 2  # of both parts
    assert "<b>ox" not in page
    assert "&lt;b&gt;ox &amp; co" in page


def test_nothing_is_said_of_fixes_that_were_not_asked_for(tmp_path: Path):
    path = write(tmp_path, content())
    check_dataset(path, val=False, decode_images=False, html=tmp_path / "page.html")
    assert "<h2>Fixed</h2>" not in (tmp_path / "page.html").read_text()


def test_close_ups_of_problems_are_drawn(page: str):
    captions = re.findall(r"<figcaption[^>]*>(.*?)</figcaption>", page)
    assert any("annotation 8 (0.png): bbox is [900, 5, 3, 4]" in caption for caption in captions)
    assert sum("0.png, 3 objects" in caption for caption in captions) == 2  # a sample of each part


def test_annotations_without_images_make_a_page_too(tmp_path: Path):
    check_dataset({**content(), "annotations": []}, html=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "nothing to show" in text
    assert "<img" not in text


def bars_of(svg: str) -> list[ElementTree.Element]:
    return [r for r in ElementTree.fromstring(svg).iter("rect") if r.get("class") == "bar"]


def test_a_histogram_counts_every_positive_value_once():
    values = [0.0, -1.0, np.nan, *np.random.default_rng(0).lognormal(3, 1, 500)]
    svg = histogram(values, "size", band=(8, 512), lines=(16, 256), note="anchors")
    counts = [int(re.sub(r".*: |,", "", r[0].text or "")) for r in bars_of(svg)]
    assert sum(counts) == 500
    heights = [float(r.get("height", 0)) for r in bars_of(svg)]
    assert np.allclose(np.array(heights) / max(heights), np.array(counts) / max(counts), atol=0.01)
    assert svg.count('class="mark"') == 2


@pytest.mark.parametrize(
    "svg",
    [
        histogram([], "nothing"),
        histogram([5.0], "one"),
        image_sizes(np.zeros((0, 2), int)),
        image_sizes(np.array([[480, 640], [480, 640], [100, 9000]])),
        bars([("a & b", 3), ("none", 0)]),
        heat_map(np.zeros((0, 2))),
        heat_map(np.random.default_rng(0).uniform(0, 1, (50, 2))),
    ],
)
def test_charts_of_few_values_are_well_formed(svg: str):
    assert ElementTree.fromstring(svg).tag == "svg"


def test_the_smallest_categories_share_a_bar():
    svg = bars([(f"c{n}", n) for n in range(100)], most=10)
    assert len(bars_of(svg)) == 10
    assert "91 more" in svg
    assert f"{sum(range(91)):,}" in svg
