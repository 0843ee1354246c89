"""Category and file names decide in training, drafts, ranking and unlabeled images too, never their numbers."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import training_run
from training_run import tiny_config, tiny_model

import maskrcnn as mr
from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.annotations.problems import DataError, DataWarning
from maskrcnn.training.checkpoint import read_checkpoint
from maskrcnn.training.unlabeled import open_unlabeled
from maskrcnn.weights.pretrained import start
from maskrcnn.weights.transfer import for_categories


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_run.draw(tmp_path_factory.mktemp("data"), 4)


def renumbered(path: Path, name: str = "renumbered.json") -> Path:
    """The same annotations: categories in another order and with other ids, images and annotations with other ids."""
    content = json.loads(path.read_text())
    ids = {1: 40, 2: 7}
    content["categories"] = [{**c, "id": ids[c["id"]]} for c in reversed(content["categories"])]
    for image in content["images"]:
        image["id"] = 1000 - image["id"]
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
        annotation["image_id"] = 1000 - annotation["image_id"]
        annotation["id"] += 500
    (path.parent / name).write_text(json.dumps(content))
    return path.parent / name


def trained(model: Any, data: Any, out: Path, **more: Any) -> dict[str, torch.Tensor]:
    config = tiny_config(steps=2, evaluate_every=1000)
    mr.train(model, data, config=config, out=out, device="cpu", progress=False, **more)
    return read_checkpoint(out / "checkpoint.safetensors")[0]["model"]


def test_training_on_renumbered_data_gives_the_same_weights(drawn: Path, tmp_path: Path):
    model = tiny_model(CocoDataset(drawn))
    wanted = trained(model, drawn, tmp_path / "a")
    got = trained(model, renumbered(drawn), tmp_path / "b")
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_validation_on_renumbered_data_gives_the_same_ap(drawn: Path, tmp_path: Path):
    model = tiny_model(CocoDataset(drawn))
    network = mr.MaskRCNN.from_config(model)
    network.eval()
    first, second = (mr.evaluate(network, path) for path in (drawn, renumbered(drawn)))
    assert {n: t["bbox"] for n, t in first.per_category.items()} == {
        n: t["bbox"] for n, t in second.per_category.items()
    }
    val = CocoDataset(renumbered(drawn))
    trained(model, drawn, tmp_path / "run", val=val)  # matched by name, whatever its order


def test_a_run_is_not_resumed_on_data_that_were_renumbered(drawn: Path, tmp_path: Path):
    """The images of a step are chosen by index, so that only the same file gives the same run."""
    model = tiny_model(CocoDataset(drawn))
    trained(model, drawn, tmp_path / "run")
    with pytest.raises(ValueError, match=r"cannot resume .*data\.sha256: was .*own settings and"):
        trained(model, renumbered(drawn), tmp_path / "run", resume=True)


def test_a_pretrained_model_keeps_each_category_by_its_name(drawn: Path, tmp_path: Path):
    data = CocoDataset(drawn)
    network = mr.MaskRCNN.from_config(tiny_model(data))
    mr.save(network, tmp_path / "first.safetensors")
    other = CocoDataset(renumbered(drawn))
    assert [c.name for c in data.categories] == ["card", "stick"]
    assert [c.name for c in other.categories] == ["stick", "card"]
    made = start(
        for_categories(network.config, other.categories), tmp_path / "first.safetensors"
    ).network
    before, after = network.box_head.class_logits.weight, made.box_head.class_logits.weight
    assert torch.equal(after, before[[1, 0, 2]])


def test_keypoints_of_validation_data_are_matched_by_name_or_refused(drawn: Path, tmp_path: Path):
    data = CocoDataset(drawn)

    def with_keypoints(*names: str) -> CocoDataset:
        content = json.loads(drawn.read_text())
        content["categories"][1] |= {"keypoints": list(names), "skeleton": []}
        for annotation in content["annotations"]:
            if annotation["category_id"] == 2:
                annotation["keypoints"] = [v for n in range(len(names)) for v in (10 + n, 20, 2)]
        return CocoDataset(content, drawn.parent, categories=data.categories)

    def x_values(opened: CocoDataset) -> list[float]:
        stick = next(a for a in opened[0].annotations if a.label == 1)
        assert stick.keypoints is not None
        return [float(x) for x, _, v in stick.keypoints if v > 0]

    assert x_values(with_keypoints("top", "end")) == [10.5, 11.5]
    assert x_values(with_keypoints("End", "TOP")) == [11.5, 10.5]
    assert x_values(with_keypoints("keypoint 1", "keypoint 2")) == [10.5, 11.5]
    partly = with_keypoints("end", "middle", "tail")
    assert x_values(partly) == [10.5]
    notes = "\n".join(map(str, partly.notes))
    assert "requested keypoints that the file does not define (1): unlabeled here" in notes
    assert "keypoints that are not requested (2): not used, such as stick: middle" in notes
    with pytest.raises(DataError, match='"stick": expected the keypoints top, end, got nose, tail'):
        with_keypoints("nose", "tail")


@pytest.mark.parametrize("format", ["coco", "yolo-pose", "labelme", "voc", "cvat", "via"])
def test_drafts_name_the_categories_of_the_predictions(format: str, drawn: Path, tmp_path: Path):
    """The model's labels are neither in the order of the ids nor counted from 1."""
    data = CocoDataset(drawn)
    config = tiny_model(data)
    card, stick = config.categories
    categories = (replace(card, id=40), replace(stick, id=7))
    torch.manual_seed(1)
    network = mr.MaskRCNN.from_config(replace(config, categories=categories)).eval()
    with torch.no_grad():  # some boxes are cards, some are sticks
        network.box_head.class_logits.weight.normal_(0, 3)
        network.box_head.class_logits.bias[:] = torch.tensor([1.0, 1.0, -9.0])
    predictor = mr.Predictor(network, min_score=0.05)
    summary = mr.predict_files(
        predictor, [drawn.parent / "0.png"], tmp_path / "out", annotations=format, progress=False
    )
    assert set(summary.objects) == {"card", "stick"}
    drafts = mr.load_dataset(tmp_path / "out" / format, on_error="drop")
    counts = dict.fromkeys(summary.objects, 0)
    for annotation in drafts[0].annotations:
        counts[drafts.categories[annotation.label].name] += 1
    assert counts == summary.objects
    assert summary.objects["card"] != summary.objects["stick"]


def test_unlabeled_images_are_the_same_however_they_are_given(drawn: Path, tmp_path: Path):
    """Annotated images are left out by their file, whatever their number; annotations do not count."""
    pool = training_run.draw(tmp_path / "pool", 3, seed=5)
    data = CocoDataset(drawn)
    folder = open_unlabeled(pool.parent, data)
    with pytest.warns(DataWarning, match="6 annotations not used, because the images are"):
        given = open_unlabeled(CocoDataset(renumbered(pool)), data)
    names = [[part[i].file_name for i in range(len(part))] for part in (folder, given)]
    assert names[0] == names[1] == ["0.png", "1.png", "2.png"]
    assert given.categories == data.categories
    some = CocoDataset(copy.deepcopy(json.loads(pool.read_text())), pool.parent).subset([1])
    with pytest.warns(DataWarning):
        left = open_unlabeled(CocoDataset(renumbered(pool)), some)
    assert [left[i].file_name for i in range(len(left))] == ["0.png", "2.png"]
