"""The data sets of the experiments: which images a seed trains on, and which it is measured on.

In: a folder with `<name>/images` and `<name>/annotations/{train,val}.json`; scenes are drawn. Out:
COCO content of the training images, and a data set of the validation images.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.annotations.coco_types import CocoContent

from .annotation_kinds import seconds_per_object
from .measure import Validation
from .queue import Setup, locked

# Training images of a seed: the scenes have about three objects each, the nuclei 44.
IMAGES = {"nuclei": 56, "scenes": 150, "many_scenes": 1200, "plants": 58, "coco_mini_kp": 80}
# On a GPU that 16 runs share, a step with 16 drawn scenes takes as long as one with four. With other
# images the augmentation, on one core per run, is the limit.
BATCH = {"nuclei": 8, "scenes": 16, "many_scenes": 16, "plants": 8, "coco_mini_kp": 8}
STEPS = {"nuclei": 260, "scenes": 400, "many_scenes": 400, "plants": 220, "coco_mini_kp": 180}
SCENES = {"scenes": 300, "many_scenes": 1500}  # drawn ones, of which a seed chooses
SCENES_VAL, SCENE_SIDE = 100, 160
SCENE_CATEGORIES = (2, 3, 4)  # star, ring, figure: balls are ellipses, and only clutter here
RARE = 10  # a type with fewer validation images is also measured on unused training images
POOL_SEEDS, POOL_EACH = 3, 60  # at least the most images that are ranked


def folder(name: str, setup: Setup) -> Path:
    """The folder of a data set; draws the scenes if they are missing."""
    if name not in SCENES:
        return setup.data / name
    where = setup.out / name
    with locked(setup.out / f"{name}.lock", wait=True):
        for part, count, seed in (("train", SCENES[name], 0), ("val", SCENES_VAL, 1)):
            if not (where / f"{part}.json").exists():
                _draw(where, part, count, seed)
    return where


def _draw(where: Path, part: str, count: int, seed: int) -> None:
    """Draws scenes, and keeps the categories that are measured, without keypoints."""
    from maskrcnn.synthetic.scenes import write_scenes

    content = json.loads(write_scenes(where / part, count, seed, SCENE_SIDE).read_text())
    for image in content["images"]:
        image["file_name"] = f"{part}/images/{image['file_name']}"
    content["categories"] = [
        {"id": c["id"], "name": c["name"]}
        for c in content["categories"]
        if c["id"] in SCENE_CATEGORIES
    ]
    content["annotations"] = [
        {k: v for k, v in a.items() if "keypoints" not in k}
        for a in content["annotations"]
        if a["category_id"] in SCENE_CATEGORIES
    ]
    (where / f"{part}.json").write_text(json.dumps(content))


def _paths(name: str, setup: Setup, part: str) -> tuple[Path, Path]:
    """The annotation file and the folder of the images."""
    where = folder(name, setup)
    if name in SCENES:
        return where / f"{part}.json", where
    return where / "annotations" / f"{part}.json", where / "images"


@cache
def _content(path: Path) -> CocoContent:
    return json.loads(path.read_text())


def whole_training_set(name: str, setup: Setup) -> CocoContent:
    """All training images and their annotations."""
    return _content(_paths(name, setup, "train")[0])


def image_folder(name: str, setup: Setup) -> Path:
    """The folder of the images."""
    return _paths(name, setup, "train")[1]


def image_order(count: int, seed: int) -> list[int]:
    """The images in a random order that depends on the seed only, so that smaller choices are
    subsets of larger ones.
    """
    return np.random.default_rng(seed).permutation(count).tolist()


def first_images(name: str, setup: Setup, seed: int, count: int) -> list[int]:
    """The indices of a seed's first images."""
    total = len(whole_training_set(name, setup)["images"])
    return sorted(image_order(total, seed)[:count])


def images_within(name: str, setup: Setup, seed: int, kind: str, seconds: float) -> list[int]:
    """The indices of a seed's first images whose annotation takes about so many seconds.

    At least one; the last is left out if the time is nearer without it.
    """
    content = whole_training_set(name, setup)
    objects: dict[int, int] = {}
    for a in content["annotations"]:
        objects[a["image_id"]] = objects.get(a["image_id"], 0) + (not a.get("iscrowd"))
    order = image_order(len(content["images"]), seed)[: IMAGES[name]]
    each = [objects.get(content["images"][i]["id"], 0) * seconds_per_object(kind) for i in order]
    sums = np.cumsum(each)
    return sorted(order[: 1 + int(np.abs(sums - seconds).argmin())])


def ranking_pool(name: str, setup: Setup) -> list[int]:
    """The indices of the images from which `rank` chooses, the same for all seeds."""
    total = len(whole_training_set(name, setup)["images"])
    orders = (image_order(total, seed)[:POOL_EACH] for seed in range(POOL_SEEDS))
    return sorted({index for order in orders for index in order})


def selected(content: CocoContent, indices: Sequence[int]) -> CocoContent:
    """The content of some images only."""
    images = [content["images"][i] for i in indices]
    ids = {image["id"] for image in images}
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    return {**content, "images": images, "annotations": annotations}


def dataset(name: str, setup: Setup, content: CocoContent) -> CocoDataset:
    """Content of a source as a data set."""
    plain: dict[str, Any] = {**content}
    return CocoDataset(plain, image_folder(name, setup), name=name)


def validation(name: str, setup: Setup, used: Sequence[int] | None = None) -> Validation:
    """The images that a model is measured on.

    Args:
        name: the data set.
        setup: where it is.
        used: indices of the training images that the model has seen. The others of types with few
            validation images are measured too; None = only validation images are.
    """
    path, images = _paths(name, setup, "val")
    data, types = CocoDataset(path, images), _types(_content(path))
    unused = [] if used is None else sorted(set(images_of_rare_types(name, setup)) - set(used))
    if not unused:
        return Validation(data, types)
    content = selected(whole_training_set(name, setup), unused)
    return Validation(data, {**types, **_types(content)}, dataset(name, setup, content))


def images_of_rare_types(name: str, setup: Setup) -> list[int]:
    """The indices of the training images whose type has few validation images."""
    known = Counter(_types(_content(_paths(name, setup, "val")[0])).values())
    content = whole_training_set(name, setup)
    types = _types(content)
    return [
        index
        for index, image in enumerate(content["images"])
        if image["id"] in types and known[types[image["id"]]] < RARE
    ]


def _types(content: CocoContent) -> dict[int, str]:
    """The type of each image by its id, where the data say it."""
    entries: list[Any] = content["images"]
    return {entry["id"]: entry["image_type"] for entry in entries if entry.get("image_type")}
