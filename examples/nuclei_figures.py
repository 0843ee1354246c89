"""Numbers and failure examples for the model card of `nuclei`: AP per image type, and the images with
the most errors.

python examples/nuclei_figures.py nuclei nuclei/annotations/val.json nuclei/images --out docs/images
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations import rle
from maskrcnn.draw.overlay import draw_instances

MIN_SCORE = 0.5


def main() -> None:
    """Prints a Markdown table and writes the worst image of each type."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("annotations")
    parser.add_argument("folder")
    parser.add_argument("--out", default="docs/images")
    args = parser.parse_args()

    model = mr.load(args.model)
    content = json.loads(Path(args.annotations).read_text())
    types = {image["id"]: image["image_type"] for image in content["images"]}
    data = mr.CocoDataset(args.annotations, images=args.folder)
    predictions = [mr.predict(model, data[i].path) for i in range(len(data))]

    names = ["all", *dict.fromkeys(types.values())]
    print(
        "| images | number | nuclei | box AP | mask AP | mask AP50 | mask AP75 | detected | false |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name in names:
        indices = [i for i in range(len(data)) if name in ("all", types[data[i].image_id])]
        results = [
            entry for i in indices for entry in predictions[i].to_coco(image_id=data[i].image_id)
        ]
        report = mr.evaluate(results, data.subset(indices), max_detections=500)
        assert report.bbox is not None
        assert report.segm is not None

        counts = np.array([errors(data[i], predictions[i]) for i in indices]).sum(axis=0)
        missed, false, total = counts
        recall = 1 - missed / total
        false_rate = false / max(1, total - missed + false)
        numbers = [report.bbox["AP"], report.segm["AP"], report.segm["AP50"], report.segm["AP75"]]
        print(
            f"| {name} | {len(indices)} | {total} | {' | '.join(f'{v:.3f}' for v in numbers)} | {recall:.1%} | {false_rate:.1%} |"
        )

    for name in names[1:]:
        of_type = [i for i in range(len(data)) if types[data[i].image_id] == name]
        counts = {i: errors(data[i], predictions[i]) for i in of_type}
        worst = max(of_type, key=lambda i: (counts[i][0] + counts[i][1]) / counts[i][2])
        target = Path(args.out) / f"nuclei_{name}_worst.jpg"
        pair(data.image(worst), predictions[worst]).save(target, quality=88)
        print(
            f"{target}: {counts[worst][2]} nuclei, {counts[worst][0]} missed, {counts[worst][1]} false detections"
        )


def errors(record, instances: mr.Instances) -> tuple[int, int, int]:
    """Counts missed nuclei, false detections and all nuclei of an image. Detections with a score of
    at least 0.5 count; a match has a mask IoU above 0.5.
    """
    kept = instances[instances.scores >= MIN_SCORE]
    truth = np.stack([rle.decode(a.rle) for a in record.annotations]).reshape(
        len(record.annotations), -1
    )
    masks = kept.masks.dense().numpy().reshape(len(kept), -1)
    shared = torch.from_numpy(truth).float() @ torch.from_numpy(masks).float().T
    union = torch.from_numpy(truth.sum(1))[:, None] + torch.from_numpy(masks.sum(1)) - shared
    match = (shared / union > 0.5).numpy() if len(kept) else np.zeros((len(truth), 0), bool)
    return int((~match.any(1)).sum()), int((~match.any(0)).sum()), len(truth)


def pair(image: np.ndarray, instances: mr.Instances) -> Image.Image:
    """The image and its detections, side by side."""
    overlay = draw_instances(
        instances[instances.scores >= MIN_SCORE], image, boxes=False, names=False, enlarge=True
    )
    both = Image.new("RGB", (2 * overlay.width + 8, overlay.height), "white")
    both.paste(Image.fromarray(image).resize(overlay.size, Image.Resampling.BICUBIC), (0, 0))
    both.paste(overlay, (overlay.width + 8, 0))
    both.thumbnail((1600, 1600))
    return both


if __name__ == "__main__":
    main()
