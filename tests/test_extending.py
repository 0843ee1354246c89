"""The code of docs/extending.md runs, from top to bottom, and does what the page says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from maskrcnn.formats import all_formats

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def blocks() -> dict[str, list[str]]:
    """The Python blocks of the page, by section."""
    sections: dict[str, list[str]] = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## "):
        title = section.splitlines()[0]
        sections[title] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return sections


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names of the page, after its first blocks have run in an empty folder."""
    module = ModuleType("extending_page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        patch.setitem(sys.modules, module.__name__, module)  # timm asks for the module of a trunk
        (setup,) = blocks()["# Extending"]
        exec(setup, module.__dict__)
        built_in = [*all_formats.FORMATS]
        yield module.__dict__
        all_formats.FORMATS[:] = built_in


def run_section(title: str, names: dict[str, Any]) -> None:
    for block in blocks()[title]:
        exec(compile(block, f"{PAGE.name}: {title}", "exec"), names)


def columns(out: str) -> list[str]:
    return Path(out, "metrics.csv").read_text().splitlines()[0].split(",")


def test_an_own_training_loop_saves_a_model(page: dict[str, Any]) -> None:
    run_section("Your own training loop", page)
    assert page["mr"].load("mine.safetensors").config == page["network"]
    assert set(page["losses"]) >= {"rpn_objectness", "classification", "box", "mask"}
    rates = [rate for rate, _ in page["rates"]]
    assert rates == pytest.approx([1e-6, 10**-4.75, 10**-3.5, 10**-2.25])


def test_a_callback_follows_the_run(
    page: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run_section("Callbacks", page)
    printed = capsys.readouterr().out
    assert "run: 2 steps" in printed
    assert "best so far: {'step': 2" in printed


def test_an_own_augmentation_changes_geometry_and_pixels(page: dict[str, Any]) -> None:
    run_section("Augmentation", page)
    mr = page["mr"]
    plain, own = (
        mr.TrainingSet(page["data"], page["network"], mr.AugmentConfig(), augmentation=changes)
        for changes in (None, page["ShearAndGrain"]())
    )
    one, other = plain.example(1, 5), own.example(1, 5)
    assert other.to_model[0, 1] != 0
    assert one.to_model[0, 1] == 0
    assert not (one.image == other.image).all()
    repeated = own.example(1, 5)
    assert (repeated.image == other.image).all()
    with pytest.raises(ValueError, match=r"these settings differ: augmentation: was 'ShearAndGrai"):
        page["train"](out="sheared", resume=True)


def test_an_own_head_learns_jointly_and_predicts(page: dict[str, Any]) -> None:
    run_section("A head with its loss", page)
    assert {"loss/area", "val_loss/area"} <= set(columns("areas"))
    assert page["area"].shape == page["detections"].valid.shape
    assert page["area"][page["detections"].valid].abs().sum() > 0
    loaded = page["model"].extra_heads["area"].layers[0].weight
    assert (loaded == page["run"].model.extra_heads["area"].layers[0].weight).all()
    with pytest.warns(UserWarning, match="left out the heads area, which are not built in"):
        plain = page["mr"].load("areas")
    assert not plain.extra_heads


def test_a_head_gets_the_ids_of_the_annotations(page: dict[str, Any]) -> None:
    mr, torch = page["mr"], page["torch"]

    class Ids(mr.ExtraHead):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[int, int]] = []

        def loss(self, rois: Any) -> Any:
            own = rois.valid
            self.seen += zip(
                rois.annotation_ids[own].tolist(), rois.labels[own].tolist(), strict=True
            )
            return rois.features.sum() * 0

    data = page["data"]
    labels = {a.id: a.label for i in range(len(data)) for a in data[i].annotations}
    model = mr.MaskRCNN.from_config(page["network"]).eval()
    head = Ids()
    model.extra_heads.add("ids", head)
    images = mr.TrainingSet(data, page["network"], mr.AugmentConfig())
    for batch, truth in mr.TrainingLoader(images, [[(0, 1), (1, 2)], [(2, 3), (3, 4)]]):
        model.losses(batch, truth)
    assert head.seen
    assert all(labels[number] == label for number, label in head.seen)

    empty = mr.Truth.empty(1, 0, network_mask(page), page["network"].num_keypoint_channels)
    batch = mr.Batch.collate([torch.zeros(3, 64, 64, dtype=torch.uint8)])
    before = len(head.seen)
    assert "ids" in model.losses(batch, empty)
    assert len(head.seen) == before


def network_mask(page: dict[str, Any]) -> int:
    return page["network"].mask.truth_size


@pytest.mark.parametrize("name", ["mask", "ids", "two words"])
def test_the_name_of_a_head_must_be_free(page: dict[str, Any], name: str) -> None:
    mr = page["mr"]
    model = mr.MaskRCNN.from_config(page["network"])
    model.extra_heads.add("ids", mr.ExtraHead())
    with pytest.raises(ValueError, match=f'"{name}": expected an identifier other than the names'):
        model.extra_heads.add(name, mr.ExtraHead())


def test_an_own_metric_has_its_column(page: dict[str, Any]) -> None:
    run_section("A metric", page)
    assert columns("counted")[-2] == "val/count_error"
    assert page["run"].history[-1]["val/count_error"] >= 0
    with pytest.raises(ValueError, match='metrics: "bbox_AP" is a built-in number'):
        page["train"](out="other", metrics={"bbox_AP": page["count_error"]})


def test_an_own_format_is_read_like_any_other(page: dict[str, Any]) -> None:
    run_section("An annotation format", page)
    assert [a.box for a in page["leaves"][0].annotations] == [(4, 8, 24, 38), (30, 8, 50, 38)]
    with pytest.raises(ValueError, match='"yolo-seg" is a built-in format'):
        page["mr"].register_format("yolo-seg", recognize=lambda _: False, read=page["read_csv"])
    Path("unknown.txt").write_text("nothing")
    with pytest.raises(page["mr"].DataError, match="leaf boxes: lines of file,x,y,width,height"):
        page["mr"].load_dataset("unknown.txt")


def test_an_own_trunk_is_trained_saved_and_loaded(page: dict[str, Any]) -> None:
    run_section("A trunk", page)
    assert page["model"].config.trunk.timm == "plain_trunk"
    assert page["model"].trunk.channels == (8, 16, 24, 32)


def test_optuna_searches_settings_in_two_trials(page: dict[str, Any]) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed")
    run_section("Searching for settings", page)
    assert len(page["study"].trials) == 2
    assert {t.state.name for t in page["study"].trials} == {"COMPLETE"}
    assert set(page["study"].best_params) == {"learning_rate", "flip_vertical"}
