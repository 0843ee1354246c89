"""Pascal VOC: Annotations/*.xml, JPEGImages/, ImageSets/, and for masks SegmentationObject/ and SegmentationClass/ (PNG with a palette).

Value k of SegmentationObject is the k-th object of the XML; 255 is void and belongs to none. Boxes count pixels from 1 and include the last one:
xmin 1, xmax W is the whole width. `difficult` objects are regions to ignore, as in VOC's evaluation. Class colors: labelmap.txt's, or VOC's own.
A map holds one object a pixel: of objects that overlap, the larger is cut. Images with more than 254 objects get a map of 16 bits.

Source: Everingham and Winn, "The PASCAL Visual Object Classes Challenge 2012 Development Kit".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np
from PIL import Image

from ..annotations.problems import DataError
from ..images.files import IMAGE_SUFFIXES
from .id_maps import objects_of, paint, png, read_ids, voc_colors
from .reading import Annotated, Builder, Drawn, tracked
from .source import Source, read_xml
from .writing import (
    Losses,
    Target,
    around,
    box_of,
    ignored,
    keypoints_of,
    label_of,
    mask_box,
    names_of,
    number,
    rle_of,
    size_of,
)

NAME = "voc"
LOOKS_LIKE = "Pascal VOC: a folder with Annotations/*.xml or SegmentationObject/*.png, or a folder of such XML files, or of such folders"
VOID, MOST = 255, 254
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
)


def recognize(source: Source, images: str | Path | None = None) -> bool:
    """Whether it is VOC's."""
    if source.path.is_file():
        return source.xml is not None and source.xml.tag == "annotation"
    return _is_voc(source) or bool(_folders(source))


def splits(source: Source) -> list[str]:
    """The lists of ImageSets: those with one name a line; or the folders that are VOC's each, as Roboflow exports."""
    return [*_sets(source), *_folders(source)] if source.path.is_dir() else []


def read(source: Source, images: str | Path | None, split: str) -> Annotated:
    """Reads a split, or everything."""
    if split and split in _folders(source):
        return read(Source(source.path / split), images, "")
    root = source.folder
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    if source.path.is_file():
        names = [source.path.stem]
    elif split:
        names = _names(_sets(source)[split])
    else:
        files = {folder: folder.rglob("*.xml") if folder != root else root.glob("*.xml")}
        files[root / "SegmentationObject"] = (root / "SegmentationObject").rglob("*.png")
        names = sorted(
            {
                p.relative_to(base).with_suffix("").as_posix()
                for base, found in files.items()
                for p in found
            }
        )
    places = [
        root / "JPEGImages",
        root / "images",
        root,
        root.parent / "JPEGImages",
        root.parent / "images",
    ]
    image_folder = (
        Path(images)
        if images is not None
        else next((p for p in places[:2] if p.is_dir()), None) or _with_images(places, names)
    )
    builder = Builder(f"{source.name}:{split}" if split else source.name, image_folder)
    colors = _colors(root, builder)
    for name in tracked(names, "reading VOC annotations"):
        path = folder / f"{name}.xml"
        try:
            xml = read_xml(path) if path.is_file() else Element("annotation")
        except DataError as error:
            builder.problem("broken file", path.name, str(error), "restore the file")
            continue
        size = (xml.findtext("size/height"), xml.findtext("size/width"))
        known = (
            (int(size[0]), int(size[1]))
            if size[0] and size[1] and int(size[0]) * int(size[1])
            else None
        )
        image = builder.image(
            _file_name(image_folder, name, xml.findtext("filename")), known, path.name
        )
        if image is not None:
            _objects(builder, image, xml, root, name, colors)
    return builder.done()


def _is_voc(source: Source) -> bool:
    """Whether a folder has XML files or maps of VOC's itself."""
    if source.first("SegmentationObject/**/*.png"):
        return True
    first = source.first("Annotations/**/*.xml") or source.first("*.xml")
    return (
        first is not None and re.search(rb"<annotation[\s>]", first.read_bytes()[:2000]) is not None
    )


def _folders(source: Source) -> list[str]:
    """The folders in a folder that are VOC's each, where it is not so itself."""
    if not source.path.is_dir() or _is_voc(source):
        return []
    return [p.name for p in sorted(source.path.iterdir()) if p.is_dir() and _is_voc(Source(p))]


def _sets(source: Source) -> dict[str, Path]:
    """Segmentation's lists where there are any, else Main's; not the lists of one class, with a second column."""
    folder = next(
        (
            f
            for f in (source.path / "ImageSets" / n for n in ("Segmentation", "Main", ""))
            if any(f.glob("*.txt"))
        ),
        None,
    )
    files = sorted(folder.glob("*.txt")) if folder else []
    return {
        p.stem: p
        for p in files
        if len((p.read_text(encoding="utf-8").splitlines() or [""])[0].split()) <= 1
    }


def _names(path: Path) -> list[str]:
    return [
        Path(line.strip()).with_suffix("").as_posix()
        if Path(line.strip()).suffix.lower() in IMAGE_SUFFIXES
        else line.strip()
        for line in _lines(path)
    ]


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _with_images(places: list[Path], names: list[str]) -> Path:
    return next(
        (
            p
            for p in places
            if any((p / f"{n}{e}").is_file() for n in names[:20] for e in IMAGE_SUFFIXES)
        ),
        places[2],
    )


def _file_name(folder: Path, name: str, given: str | None) -> str:
    """The image of an annotation: as it says, or the one of the same name."""
    here = (
        str(Path(name).parent / given) if given else "",
        *(f"{name}{ending}" for ending in sorted(IMAGE_SUFFIXES)),
    )
    return next((n for n in here if n and (folder / n).is_file()), given or f"{name}.jpg")


def _colors(root: Path, builder: Builder) -> dict[tuple[int, ...], str]:
    """Color -> class, from labelmap.txt (name:r,g,b:parts:actions) or VOC's own; declares those of labelmap.txt."""
    path = root / "labelmap.txt"
    if not path.is_file():
        return {
            tuple(color): name
            for color, name in zip(voc_colors()[1:].tolist(), CLASSES, strict=False)
        }
    found = {}
    for line in (line for line in _lines(path) if not line.startswith("#")):
        name, color = (
            line.rsplit(":", 3)[:2] if line.count(":") > 2 else [*line.split(":"), ""][:2]
        )  # names may have colons
        if name != "background":
            builder.category(name)
            found[tuple(int(v) for v in color.split(",") if v.strip())] = name
    return found


def _objects(
    builder: Builder,
    image: int,
    xml: Element,
    root: Path,
    name: str,
    colors: Mapping[tuple[int, ...], str],
) -> None:
    masks = _masks(builder, image, root / "SegmentationObject" / f"{name}.png")
    for place, node in enumerate(xml.iterfind("object"), start=1):
        where = f"{name}.xml, object {place}"
        drawn = Drawn(
            node.findtext("name") or "",
            where,
            ignore=(node.findtext("difficult") or "0").strip() == "1",
        )
        try:
            x0, y0, x1, y1 = (
                float(node.findtext(f"bndbox/{side}") or "nan")
                for side in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError as error:
            builder.problem(
                "broken box", where, str(error), "write xmin, ymin, xmax, ymax in pixels"
            )
            continue
        if node.find("part") is not None:
            builder.problem(
                "parts of an object",
                where,
                ", ".join(p.findtext("name") or "" for p in node.iterfind("part")),
                "left out",
                False,
            )
        if np.isfinite([x0, y0, x1, y1]).all():
            drawn.boxes.append((x0 - 1, y0 - 1, x1, y1))
        if place in masks:
            drawn.rles.append(masks.pop(place))
        builder.add(image, drawn)
    if masks:
        classes = _class_map(root / "SegmentationClass" / f"{name}.png")
        for one, rle in masks.items():
            where = f"SegmentationObject/{name}.png, id {one}"
            category = _class_under(rle, classes, colors)
            if category is None:
                builder.problem(
                    "mask without class",
                    where,
                    "no object in the XML and no class in SegmentationClass",
                    "add it to one of them",
                )
            else:
                builder.add(image, Drawn(category, where, rles=[rle]))


def _masks(builder: Builder, image: int, path: Path) -> dict[int, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        ids = read_ids(path)
    except ValueError as error:
        builder.problem("unreadable mask", path.name, str(error), "restore the file")
        return {}
    if ids.shape != builder.size(image):
        detail = f"is {ids.shape[1]} x {ids.shape[0]}, the image {builder.size(image)[1]} x {builder.size(image)[0]}"
        builder.problem(
            "mask of another size", path.name, detail, "save the mask in the image's size"
        )
        return {}
    with Image.open(path) as opened:
        mode = opened.mode
    if mode in ("RGB", "RGBA"):  # drawn in the palette's colors
        colors = voc_colors().astype(np.int64)
        index = {int(r + 256 * g + 65536 * b): k for k, (r, g, b) in enumerate(colors)}
        found, inverse = np.unique(ids, return_inverse=True)
        ids = np.array([index.get(v, v) for v in found.tolist()])[inverse].reshape(ids.shape)
    return objects_of(ids, without=() if mode.startswith("I") else (VOID,))


def _class_map(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _class_under(
    rle: dict[str, Any], classes: np.ndarray | None, colors: Mapping[tuple[int, ...], str]
) -> str | None:
    """The class of most of an object's pixels."""
    from ..annotations.rle import decode

    if classes is None or classes.shape[:2] != tuple(rle["size"]):
        return None
    found, counts = np.unique(classes[decode(rle)], axis=0, return_counts=True)
    named = [
        (n, colors[tuple(c)])
        for c, n in zip(found.tolist(), counts.tolist(), strict=True)
        if tuple(c) in colors
    ]
    return max(named)[1] if named else None


def write(annotated: Annotated, target: Target, losses: Losses) -> None:
    """Writes the folders of one split; labelmap.txt names the classes."""
    categories = names_of(annotated.content)
    if len(categories) > MOST:
        raise ValueError(
            f"voc: holds at most {MOST} categories, these are {len(categories)}; choose coco"
        )
    index = {c: k for k, c in enumerate(categories, start=1)}
    split, names = target.split or "train", []
    segmented = any(raw.get("segmentation") for raw in annotated.content["annotations"])
    for image, raws in target.each():
        folder = target.folder / "JPEGImages"
        taken = (folder / target.name(image)).exists()  # by another split
        image_path = target.place(image, folder / split if taken else folder)
        name = image_path.relative_to(target.folder / "JPEGImages").with_suffix("")
        names.append(name.as_posix())
        xml, masks, classes = _head(image_path, image, segmented), {}, {}
        for raw in raws:
            category, where = categories[raw["category_id"]], label_of(raw, image)
            box = box_of(raw) or mask_box(raw, size_of(image))
            if keypoints := keypoints_of(raw, category):
                losses.add("keypoints", where)
                if box is None:
                    losses.add("objects without a box get the one around their keypoints", where)
                    box = around(keypoints)
            if box is None:
                losses.add("objects without box, mask and keypoints, left out", where)
                continue
            place = sum(1 for _ in xml.iterfind("object")) + 1
            _write_object(xml, category["name"], ignored(raw), box)
            if (rle := rle_of(raw, size_of(image))) is not None:
                masks[place], classes[place] = rle, index[raw["category_id"]]
        ElementTree.indent(xml)
        target.write(
            target.folder / "Annotations" / name.with_suffix(".xml"),
            ElementTree.tostring(xml, encoding="utf-8"),
        )
        if segmented:
            _write_masks(masks, classes, image, name, target, losses)
    for folder in ("Main", *(("Segmentation",) if segmented else ())):
        target.write(
            target.folder / "ImageSets" / folder / f"{split}.txt", "".join(f"{n}\n" for n in names)
        )
    rows = [
        f"{c['name']}:{','.join(map(str, voc_colors()[index[k]].tolist()))}::"
        for k, c in categories.items()
    ]
    target.rewrite(
        target.folder / "labelmap.txt",
        "\n".join(["# label:color_rgb:parts:actions", "background:0,0,0::", *rows, ""]),
    )


def _head(image_path: Path, image: Mapping[str, Any], segmented: bool) -> Element:
    xml = Element("annotation")
    with Image.open(image_path) as opened:
        depth = len(opened.getbands())
    for tag, text in (("folder", "JPEGImages"), ("filename", image_path.name)):
        SubElement(xml, tag).text = text
    size = SubElement(xml, "size")
    for tag, value in (("width", image["width"]), ("height", image["height"]), ("depth", depth)):
        SubElement(size, tag).text = str(value)
    SubElement(xml, "segmented").text = str(int(segmented))
    return xml


def _write_object(
    xml: Element, name: str, ignore: bool, box: tuple[float, float, float, float]
) -> None:
    node = SubElement(xml, "object")
    for tag, text in (
        ("name", name),
        ("pose", "Unspecified"),
        ("truncated", "0"),
        ("difficult", str(int(ignore))),
    ):
        SubElement(node, tag).text = text
    bounds = SubElement(node, "bndbox")
    x0, y0, x1, y1 = box
    for tag, value in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
        SubElement(bounds, tag).text = str(number(value))


def _write_masks(
    masks: dict, classes: dict[int, int], image: dict, name: Path, target: Target, losses: Losses
) -> None:
    ids, covered = paint(masks, size_of(image))
    for one in covered:
        losses.add("pixels of objects under others", f"object {one} of {image['file_name']}")
    deep = max(masks, default=0) > MOST
    if deep:
        losses.add(
            "maps of more than 254 objects are saved with 16 bits, which not every reader of VOC takes",
            image["file_name"],
        )
    data = png(ids, palette=not deep, deep=deep)
    of = np.zeros(max(masks, default=0) + 1, np.int64)
    of[list(classes)] = list(classes.values())
    target.write(target.folder / "SegmentationObject" / name.with_suffix(".png"), data)
    target.write(
        target.folder / "SegmentationClass" / name.with_suffix(".png"), png(of[ids], palette=True)
    )
