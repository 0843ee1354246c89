"""Runs an exported model with onnxruntime and numpy alone: boxes, masks in the image, keypoints.

    maskrcnn export nuclei nuclei.onnx
    python examples/onnx_numpy.py nuclei.onnx image.npy

`image.npy` holds an image [H, W, 3] of uint8 RGB; any decoder can make it.
"""

import json
import sys

import numpy as np
import onnxruntime


def detect(session, images):
    """Yields the objects of each image of a batch [B, H, W, 3], best first."""
    about = json.loads(session.get_modelmeta().custom_metadata_map["maskrcnn"])
    if about["input"]["kind"] != "uint8":
        raise SystemExit("export the model with --input uint8")
    names = [output.name for output in session.get_outputs()]
    batch = dict(zip(names, session.run(names, {"images": images}), strict=True))

    for i, valid in enumerate(batch["valid"]):
        objects = {name: values[i][valid] for name, values in batch.items()}
        objects["categories"] = [about["categories"][label] for label in objects["labels"]]
        if "masks" in objects:
            grids = zip(objects["masks"], objects["boxes"], strict=True)
            objects["masks"] = [paste(*grid, images.shape[1:3], about) for grid in grids]
        yield objects


def paste(grid, box, size, about):
    """The mask [H, W] of one object, from probabilities on a grid over its box."""
    threshold, rule = about["mask_threshold"], about["paste"]
    x0, columns = weights(box[0], box[2], size[1], len(grid), rule)
    y0, rows = weights(box[1], box[3], size[0], len(grid), rule)
    inside = rows @ (grid @ columns.T)
    mask = np.zeros(size, bool)
    part = mask[y0 : y0 + len(rows), x0 : x0 + len(columns)]
    part[:] = (
        inside > np.float32(threshold) if rule == "torchvision" else inside >= np.float32(threshold)
    )
    return mask


def weights(low, high, length, cells, rule):
    """Along one axis: the first pixel of a box, and each pixel's weight of each cell."""
    if not high > low:
        return 0, np.zeros((0, cells), np.float32)
    if rule == "torchvision":  # a frame of zero cells, whole-pixel boxes
        half = (high - low) * np.float32(0.5) * np.float32((cells + 2) / cells)
        center = (high + low) * np.float32(0.5)
        first, last = int(center - half), int(center + half)
        start, stop = max(first, 0), min(last + 1, length)
        pixels = (np.arange(start, stop) - first).astype(np.float32) + np.float32(0.5)
        cell = np.float32((cells + 2) / max(last - first + 1, 1)) * pixels - np.float32(0.5)
        cell = cell.clip(0, cells + 1) - 1
    else:
        start, stop = max(int(np.ceil(low - 0.5)), 0), min(int(np.ceil(high - 0.5)), length)
        if rule == "grid":  # a mask can reach beyond its box
            start, stop = max(int(np.floor(low)) - 1, 0), min(int(np.ceil(high)) + 1, length)
        cell = (np.arange(start, stop, dtype=np.float32) + np.float32(0.5) - low) / (high - low)
        cell = cell * cells - np.float32(0.5)
        if rule == "border":  # the outer cells reach to the edge of the box
            cell = cell.clip(0, cells - 1)
    return start, np.maximum(1 - np.abs(cell[:, None] - np.arange(cells, dtype=np.float32)), 0)


if __name__ == "__main__":
    model, image = sys.argv[1:]
    for objects in detect(onnxruntime.InferenceSession(model), np.load(image)[None]):
        for i, category in enumerate(objects["categories"]):
            area = f", {objects['masks'][i].sum()} pixels" if "masks" in objects else ""
            print(
                f"{category['name']} {objects['scores'][i]:.2f} at {objects['boxes'][i].round(1)}{area}"
            )
            for j, name in enumerate(category["keypoints"]):
                print(f"  {name}: {objects['keypoints'][i, j].round(2)}")
