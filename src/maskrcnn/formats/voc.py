"""Pascal VOC: Annotations/*.xml, JPEGImages/, ImageSets/, and PNG maps for the masks.

The maps have a palette: SegmentationObject/ holds the objects, SegmentationClass/ the classes.
Value k of SegmentationObject is the k-th object of the XML; 255 is void and belongs to no object.
A map holds one object per pixel: of objects that overlap, the larger one is cut. Images with more
than 254 objects get a map of 16 bits. Class colors are those of labelmap.txt, or VOC's own.

Boxes count pixels from 1 and include the last one: xmin 1, xmax W is the whole width. Objects
marked `difficult` are regions to ignore, as in VOC's evaluation.

Other tools add shapes, whose coordinates are continuous: <polygon>, once for each part, with
<x1>, <y1>, <x2>, ... (RectLabel, Roboflow) or with points <pt> of <x> and <y>; and <robndbox> with
<cx>, <cy>, <w>, <h> and <angle> in radians (roLabelImg, labelImg2). What else an object has is
counted and named.

Source: Everingham and Winn, "The PASCAL Visual Object Classes Challenge 2012 Development Kit".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from ..annotations.coco_types import RLE, CocoAnnotation, CocoCategory, CocoImage
from ..annotations.contours import Polygon, rotated_rectangle
from ..annotations.problems import DataError
from ..annotations.rle import decode
from ..images.image_files import image_suffixes
from ..images.open_image import open_image
from .annotation_source import AnnotationSource
from .bounded_files import read_head, read_text, read_xml
from .format import Format
from .id_maps import objects_of, paint, png, read_ids, voc_colors
from .reading import Annotated, AnnotatedObject, BoxXYXY, DatasetBuilder, tracked, written_size
from .writing import (
    ConversionTarget,
    Unrepresentable,
    around,
    box_of,
    categories_by_id,
    ignored,
    keypoints_of,
    label_of,
    mask_box,
    number,
    rle_of,
    size_of,
)

VOID = 255
MOST = 254  # objects or classes that a map of 8 bits can hold, beside background and void
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
_READ = {"name", "bndbox", "difficult", "polygon", "robndbox", "part", "deleted", "type"}
_SAYS_NOTHING = ("", "0", "Unspecified", "no")  # values of the other fields
_SIDES = ("xmin", "ymin", "xmax", "ymax")
ClassColors = dict[tuple[int, ...], str]
"""Color in SegmentationClass -> class."""


def recognize(source: AnnotationSource, images: str | Path | None = None) -> bool:
    """Whether the file, the folder, or any folder inside of it is VOC's."""
    if source.path.is_file():
        return source.xml is not None and source.xml.tag == "annotation"
    return _is_voc(source) or bool(_folders(source))


def splits(source: AnnotationSource) -> list[str]:
    """Names of the lists in ImageSets, or of the VOC folders inside, as Roboflow exports them."""
    return [*_sets(source), *_folders(source)] if source.path.is_dir() else []


def read(source: AnnotationSource, images: str | Path | None, split: str) -> Annotated:
    """Reads one split, or everything if the source is not divided."""
    if split and split in _folders(source):
        return read(AnnotationSource(source.path / split), images, "")
    root = source.folder
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    names = _names(source, folder, split)
    image_folder = Path(images) if images is not None else _image_folder(root, names)
    builder = DatasetBuilder(f"{source.name}:{split}" if split else source.name, image_folder)

    colors = _colors(root, builder)
    used: set[str] = set()
    for name in tracked(names, "reading VOC annotations"):
        path = folder / f"{name}.xml"
        try:
            xml = read_xml(path) if path.is_file() else Element("annotation")
        except DataError as error:
            builder.problem("broken file", path.name, str(error), "restore the file")
            continue
        file_name = _file_name(image_folder, name, xml.findtext("filename"))
        try:
            size = written_size(xml.findtext("size/width"), xml.findtext("size/height"))
        except ValueError as error:
            suggestion = "write the size of the image file"
            builder.problem("size of the image is wrong", path.name, str(error), suggestion)
            continue
        image_id = builder.image(file_name, size if size and all(size) else None, path.name)
        if image_id is not None:
            _read_objects(builder, image_id, xml, root, name, colors)
        used.add(file_name)
        if not path.is_file() and not (root / "SegmentationObject" / f"{name}.png").is_file():
            handled = "used as examples without objects"
            builder.notes.add("images of a list that have no XML file", handled, name)
    if source.path.is_dir() and not split:
        builder.left_out_images(used, "XML file")
    return builder.build()


def _is_voc(source: AnnotationSource) -> bool:
    """Whether a folder has XML files or maps of VOC itself."""
    if source.first("SegmentationObject/**/*.png"):
        return True
    first = source.first("Annotations/**/*.xml") or source.first("*.xml")
    if first is None:
        return False
    return re.search(rb"<annotation[\s>]", read_head(first)) is not None


def _folders(source: AnnotationSource) -> list[str]:
    """The VOC folders inside of a folder that is not VOC's itself."""
    if not source.path.is_dir() or _is_voc(source):
        return []
    folders = (path for path in sorted(source.path.iterdir()) if path.is_dir())
    return [path.name for path in folders if _is_voc(AnnotationSource(path))]


def _sets(source: AnnotationSource) -> dict[str, Path]:
    """The lists of Segmentation if there are any, else of Main.

    Lists of a single class, which have a second column, are skipped.
    """
    candidates = [source.path / "ImageSets" / name for name in ("Segmentation", "Main", "")]
    folder = next((path for path in candidates if any(path.glob("*.txt"))), None)
    if folder is None:
        return {}

    sets = {}
    for path in sorted(folder.glob("*.txt")):
        lines = read_text(path).splitlines() or [""]
        if len(lines[0].split()) <= 1:
            sets[path.stem] = path
    return sets


def _names(source: AnnotationSource, folder: Path, split: str) -> list[str]:
    """The images of a split, as paths below `folder` without suffix."""
    if source.path.is_file():
        return [source.path.stem]
    if split:
        lines = [line.strip() for line in _lines(_sets(source)[split])]
        return [
            Path(line).with_suffix("").as_posix()
            if Path(line).suffix.lower() in image_suffixes()
            else line
            for line in lines
        ]

    maps = source.folder / "SegmentationObject"
    is_nested = folder != source.folder
    files = {folder: folder.rglob("*.xml") if is_nested else folder.glob("*.xml")}
    files[maps] = maps.rglob("*.png")
    names = {
        path.relative_to(base).with_suffix("").as_posix()
        for base, paths in files.items()
        for path in paths
    }
    return sorted(names)


def _lines(path: Path) -> list[str]:
    return [line for line in read_text(path).splitlines() if line.strip()]


def _image_folder(root: Path, names: Sequence[str]) -> Path:
    """JPEGImages or images; else the first folder around that contains one of the images."""
    own = [root / "JPEGImages", root / "images"]
    for folder in own:
        if folder.is_dir():
            return folder

    candidates = [*own, root, root.parent / "JPEGImages", root.parent / "images"]
    files = [f"{name}{suffix}" for name in names[:20] for suffix in image_suffixes()]
    for folder in candidates:
        if any((folder / file).is_file() for file in files):
            return folder
    return root


def _file_name(folder: Path, name: str, given: str | None) -> str:
    """The image of an annotation: the one that it names, or the one of the same name."""
    candidates = [str(Path(name).parent / given)] if given else []
    candidates += [f"{name}{suffix}" for suffix in sorted(image_suffixes())]
    existing = (candidate for candidate in candidates if (folder / candidate).is_file())
    return next(existing, given or f"{name}.jpg")


def _colors(root: Path, builder: DatasetBuilder) -> ClassColors:
    """The class of each color, from labelmap.txt (name:r,g,b:parts:actions) or VOC's own.

    Declares the classes of labelmap.txt.
    """
    path = root / "labelmap.txt"
    if not path.is_file():
        colors = zip(voc_colors()[1:].tolist(), CLASSES, strict=False)
        return {tuple(color): name for color, name in colors}

    classes: ClassColors = {}
    for line in _lines(path):
        if line.startswith("#"):
            continue
        # Names may contain colons themselves.
        fields = line.rsplit(":", 3) if line.count(":") > 2 else [*line.split(":"), ""]
        name, color = fields[:2]
        if name != "background":
            builder.category(name)
            try:
                classes[tuple(int(v) for v in color.split(",") if v.strip())] = name
            except ValueError:
                raise DataError(
                    f"{path.name}: expected lines as cat:128,0,0::, got {line[:40]!r}"
                ) from None
    return classes


def _read_objects(
    builder: DatasetBuilder,
    image_id: int,
    xml: Element,
    root: Path,
    name: str,
    colors: Mapping[tuple[int, ...], str],
) -> None:
    """Adds the objects of an image: those of the XML, then those that only the maps have."""
    masks = _masks(builder, image_id, root / "SegmentationObject" / f"{name}.png")
    for number_, node in enumerate(xml.iterfind("object"), start=1):
        where = f"{name}.xml, object {number_}"
        if (node.findtext("deleted") or "").strip() == "1":
            builder.unused("objects marked as deleted", where)
            continue
        try:
            instance = _read_object(node, where)
        except ValueError as error:
            builder.problem("broken shape", where, str(error), "draw it again in the tool")
            continue
        for part in node.iterfind("part"):
            builder.unused(f'part "{part.findtext("name") or ""}"', where)
        for field in node:
            if field.tag not in _READ and (len(field) or not _says_nothing(field)):
                builder.unused(f"<{field.tag}>", where)

        if number_ in masks:
            if instance.polygons:
                builder.unused("shapes of objects that are in SegmentationObject", where)
            instance.polygons = []
            instance.rles.append(masks.pop(number_))
        builder.add(image_id, instance)

    if not masks:
        return
    classes = _class_map(root / "SegmentationClass" / f"{name}.png")
    for object_id, rle in masks.items():
        where = f"SegmentationObject/{name}.png, id {object_id}"
        category = _class_under(rle, classes, colors)
        if category is None:
            builder.problem(
                "mask without class",
                where,
                "has no object in the XML and no class in SegmentationClass",
                "add it to one of them",
            )
        else:
            builder.add(image_id, AnnotatedObject(category, where, rles=[rle]))


def _says_nothing(field: Element) -> bool:
    return (field.text or "").strip() in _SAYS_NOTHING


def _read_object(node: Element, where: str) -> AnnotatedObject:
    """The object of an XML element: its box, polygons and rotated box.

    Raises:
        ValueError: a shape is broken.
    """
    ignore = (node.findtext("difficult") or "0").strip().lower() in ("1", "true")
    name = (node.findtext("name") or "").strip()
    if not name:
        raise ValueError("has no <name>, which is its category")
    if len(node.findall("bndbox")) > 1:
        raise ValueError(f"expected one <bndbox>, got {len(node.findall('bndbox'))}")
    instance = AnnotatedObject(name, where, ignore=ignore)
    for box in node.iterfind("bndbox"):
        if box.find("x1") is not None and box.find("xmin") is None:  # four corners
            instance.polygons.append(_read_polygon(box))
            continue
        x0, y0, x1, y1 = (_float(box, side) for side in _SIDES)
        if np.isfinite([x0, y0, x1, y1]).all():
            instance.boxes.append((x0 - 1, y0 - 1, x1, y1))

    for polygon in node.iterfind("polygon"):
        if len(polygon):
            instance.polygons.append(_read_polygon(polygon))
    for box in node.iterfind("robndbox"):
        cx, cy, w, h, angle = (_float(box, part) for part in ("cx", "cy", "w", "h", "angle"))
        if not np.isfinite([cx, cy, w, h, angle]).all() or w <= 0 or h <= 0:
            raise ValueError("robndbox: expected cx, cy, w, h > 0 and angle in radians")
        instance.polygons.append(rotated_rectangle((cx, cy), (w, h), angle))
    return instance


def _read_polygon(node: Element) -> Polygon:
    """The points of <x1>, <y1>, <x2>, ..., or of elements with <x> and <y>.

    Raises:
        ValueError: a point lacks a coordinate, or there are fewer than three.
    """
    points = [(_float(point, "x"), _float(point, "y")) for point in node if len(point)]
    if not points:
        numbers = sorted(int(p.tag[1:]) for p in node if re.fullmatch(r"[xy]\d{1,7}", p.tag))
        points = [(_float(node, f"x{k}"), _float(node, f"y{k}")) for k in dict.fromkeys(numbers)]
    if len(points) < 3 or not np.isfinite(points).all():
        raise ValueError(
            f"{node.tag}: expected 3 or more points <x1>, <y1>, <x2>, ..., got {len(points)}"
            + (", not all with both coordinates" if len(points) > 2 else "")
        )
    return np.array(points)


def _float(node: Element, name: str) -> float:
    """The number in a child element; NaN without one."""
    text = node.findtext(name) or "nan"
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"<{name}>: expected a number of pixels, got {text[:40]!r}") from None


def _masks(builder: DatasetBuilder, image_id: int, path: Path) -> dict[int, RLE]:
    """The masks of a map by id; empty without a map."""
    if not path.is_file():
        return {}
    try:
        ids = read_ids(path)
    except ValueError as error:
        builder.problem("unreadable mask", path.name, str(error), "restore the file")
        return {}
    height, width = builder.size(image_id)
    if ids.shape != (height, width):
        builder.problem(
            "mask of another size",
            path.name,
            f"expected {width} x {height} like its image, got {ids.shape[1]} x {ids.shape[0]}",
            "save the mask in the size of the image",
        )
        return {}

    with open_image(path) as opened:
        mode = opened.mode
    if mode in ("RGB", "RGBA"):
        ids = _palette_indices(ids)
    return objects_of(ids, without=() if mode.startswith("I") else (VOID,))


def _palette_indices(ids: np.ndarray) -> np.ndarray:
    """A map that was saved in the palette's colors, as indices of the palette."""
    colors = voc_colors().astype(np.int64)
    index = {int(r + 256 * g + 65536 * b): k for k, (r, g, b) in enumerate(colors)}
    values, inverse = np.unique(ids, return_inverse=True)
    return np.array([index.get(v, v) for v in values.tolist()])[inverse].reshape(ids.shape)


def _class_map(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    with open_image(path) as image:
        return np.asarray(image.convert("RGB"))


def _class_under(
    rle: RLE, classes: np.ndarray | None, colors: Mapping[tuple[int, ...], str]
) -> str | None:
    """The class of most of an object's pixels; None if no pixel has a known color."""
    if classes is None or classes.shape[:2] != tuple(rle["size"]):
        return None
    values, counts = np.unique(classes[decode(rle)], axis=0, return_counts=True)
    named = [
        (count, colors[tuple(color)])
        for color, count in zip(values.tolist(), counts.tolist(), strict=True)
        if tuple(color) in colors
    ]
    return max(named)[1] if named else None


def write(annotated: Annotated, target: ConversionTarget, lost: Unrepresentable) -> None:
    """Writes the folders of one split; labelmap.txt names the classes.

    Raises:
        ValueError: there are more categories than a map can hold.
    """
    categories = categories_by_id(annotated.content)
    if len(categories) > MOST:
        raise ValueError(
            f"voc: expected at most {MOST} categories, got {len(categories)}; choose coco"
        )
    index = {category_id: k for k, category_id in enumerate(categories, start=1)}
    split = target.split or "train"
    names: list[str] = []
    segmented = any(raw.get("segmentation") for raw in annotated.content["annotations"])

    for image, raws in target.each():
        folder = target.folder / "JPEGImages"
        taken = (folder / target.name(image)).exists()  # by another split
        image_path = target.bring(image, folder / split if taken else folder)
        name = image_path.relative_to(folder).with_suffix("")
        names.append(name.as_posix())

        xml = _head(image_path, image, segmented)
        masks: dict[int, RLE] = {}
        classes: dict[int, int] = {}
        for raw in raws:
            category = categories[raw["category_id"]]
            box = _box(raw, image, category, lost)
            if box is None:
                continue
            number_ = sum(1 for _ in xml.iterfind("object")) + 1
            _write_object(xml, category["name"], ignored(raw), box)
            if (rle := rle_of(raw, size_of(image))) is not None:
                masks[number_] = rle
                classes[number_] = index[raw["category_id"]]

        ElementTree.indent(xml)
        xml_path = target.folder / "Annotations" / name.with_suffix(".xml")
        target.write(xml_path, ElementTree.tostring(xml, encoding="utf-8"))
        if segmented:
            _write_masks(masks, classes, image, name, target, lost)

    for list_folder in ("Main", "Segmentation") if segmented else ("Main",):
        path = target.folder / "ImageSets" / list_folder / f"{split}.txt"
        target.write(path, "".join(f"{name}\n" for name in names))
    _write_labelmap(target, categories)


def _box(
    raw: CocoAnnotation, image: CocoImage, category: CocoCategory, lost: Unrepresentable
) -> BoxXYXY | None:
    """The box of an object, which VOC requires; None, with a loss added, if it has none."""
    where = label_of(raw, image)
    box = box_of(raw) or mask_box(raw, size_of(image))
    if keypoints := keypoints_of(raw, category):
        lost.add("keypoints", where)
        if box is None:
            lost.add("objects without a box, written with the box around their keypoints", where)
            return around(keypoints)
    if box is None:
        lost.add("objects without box, mask and keypoints, left out", where)
    return box


def _write_labelmap(target: ConversionTarget, categories: Mapping[int, CocoCategory]) -> None:
    """Writes labelmap.txt, which gives the classes VOC's colors in their order."""
    rows = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    colors = voc_colors()[1:].tolist()
    for category, color in zip(categories.values(), colors, strict=False):
        rows.append(f"{category['name']}:{','.join(map(str, color))}::")
    target.rewrite(target.folder / "labelmap.txt", "\n".join([*rows, ""]))


def _head(image_path: Path, image: CocoImage, segmented: bool) -> Element:
    """An annotation without objects."""
    with open_image(image_path) as opened:
        depth = len(opened.getbands())
    xml = Element("annotation")
    SubElement(xml, "folder").text = "JPEGImages"
    SubElement(xml, "filename").text = image_path.name
    size = SubElement(xml, "size")
    SubElement(size, "width").text = str(image["width"])
    SubElement(size, "height").text = str(image["height"])
    SubElement(size, "depth").text = str(depth)
    SubElement(xml, "segmented").text = str(int(segmented))
    return xml


def _write_object(xml: Element, name: str, ignore: bool, box: BoxXYXY) -> None:
    node = SubElement(xml, "object")
    SubElement(node, "name").text = name
    SubElement(node, "pose").text = "Unspecified"
    SubElement(node, "truncated").text = "0"
    SubElement(node, "difficult").text = str(int(ignore))
    x0, y0, x1, y1 = box
    bounds = SubElement(node, "bndbox")
    for side, value in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
        SubElement(bounds, side).text = str(number(value))


def _write_masks(
    masks: Mapping[int, RLE],
    classes: Mapping[int, int],
    image: CocoImage,
    name: Path,
    target: ConversionTarget,
    lost: Unrepresentable,
) -> None:
    """Writes the map of an image's objects and that of their classes.

    Args:
        masks: number of the object in the XML -> mask.
        classes: number of the object in the XML -> number of the class.
        image: the image.
        name: its path without suffix.
        target: where to write.
        lost: gets what is covered.
    """
    ids, covered = paint(masks, size_of(image))
    for object_id in covered:
        lost.add("pixels covered by other objects", f"object {object_id} of {image['file_name']}")
    most = max(masks, default=0)
    deep = most > MOST
    if deep:
        lost.add(
            "compatibility: more than 254 objects need a map of 16 bits, "
            "which some readers of VOC reject",
            image["file_name"],
        )

    class_of = np.zeros(most + 1, np.int64)
    class_of[list(classes)] = list(classes.values())
    file = name.with_suffix(".png")
    target.write(target.folder / "SegmentationObject" / file, png(ids, not deep, deep))
    target.write(target.folder / "SegmentationClass" / file, png(class_of[ids], palette=True))


VOC = Format(
    name="voc",
    description=(
        "Pascal VOC: a folder with Annotations/*.xml or SegmentationObject/*.png, "
        "or a folder of such XML files, or of such folders"
    ),
    written_as=("voc",),
    recognize=recognize,
    splits=splits,
    read=read,
    write=write,
    needs_images_beside=True,
    one_folder_for_all_splits=True,
    holds_scores=False,
)
