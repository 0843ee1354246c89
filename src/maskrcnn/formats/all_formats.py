"""The annotation formats, in the order in which they are tried. A new format is one line here.

`register_format` adds one from outside the package.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from ..annotations.coco_types import CocoContent
from .annotation_source import AnnotationSource
from .coco_json import COCO
from .cvat import CVAT
from .format import Format, ImagesFolder
from .label_studio import LABEL_STUDIO
from .labelme import LABELME
from .png_masks import PNG_MASKS
from .qupath import QUPATH
from .reading import Annotated
from .via import VIA
from .voc import VOC
from .yolo import YOLO

FORMATS: list[Format] = [
    *(COCO, YOLO, LABELME, LABEL_STUDIO, VIA, CVAT, VOC, QUPATH),
    PNG_MASKS,
]
FORMAT_BY_NAME: dict[str, Format] = {name: known for known in FORMATS for name in known.written_as}
_BUILT_IN = frozenset([*(known.name for known in FORMATS), *FORMAT_BY_NAME])


def register_format(
    name: str,
    *,
    recognize: Callable[[Path], bool],
    read: Callable[[Path], CocoContent],
    description: str = "",
) -> None:
    """Makes `load_dataset`, and whatever opens annotations, read a format of your own.

    It is tried before the built-in formats. A second registration of a name replaces the first.

    Args:
        name: of the format, in messages.
        recognize: returns whether a file or folder has this format. It gets every path that is
            opened, so it should look at the name or a few bytes.
        read: returns COCO's images, annotations and categories. Names of image files are relative
            to `images=`, or else to the folder of the annotations. The result is checked as any
            COCO file is.
        description: what such files look like, for the error that lists all formats.

    Raises:
        ValueError: a built-in format has this name.

    Example:
        >>> import maskrcnn as mr
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> def read(path):
        ...     x, y, width, height = map(int, path.read_text().split(","))
        ...     image = {"id": 1, "file_name": path.stem + ".png", "width": 64, "height": 64}
        ...     box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [x, y, width, height]}
        ...     categories = [{"id": 1, "name": "cell"}]
        ...     return {"images": [image], "annotations": [box], "categories": categories}
        >>> mr.register_format("boxcsv", recognize=lambda p: p.suffix == ".boxcsv", read=read)
        >>> Image.new("RGB", (64, 64)).save("a.png")
        >>> _ = Path("a.boxcsv").write_text("10,20,30,40")
        >>> mr.load_dataset("a.boxcsv")[0].annotations[0].box
        (10.0, 20.0, 40.0, 60.0)
    """
    if name in _BUILT_IN:
        raise ValueError(f'"{name}" is a built-in format; choose another name')

    def read_annotated(source: AnnotationSource, images: ImagesFolder, _: str) -> Annotated:
        folder = source.folder if images is None else Path(images)
        return Annotated(read(source.path), folder, source.name)

    own = Format(
        name=name,
        description=description or f"{name}: a registered format",
        recognize=lambda source, _: recognize(source.path),
        splits=lambda _: [],
        read=read_annotated,
    )
    FORMATS[:] = [own, *(known for known in FORMATS if known.name != name)]


def format_named(name: str) -> Format:
    """The format that is written under a name.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name not in FORMAT_BY_NAME:
        near = get_close_matches(name, FORMAT_BY_NAME, 1)
        suggestion = f', did you mean "{near[0]}"?' if near else "."
        raise ValueError(
            f'unknown format "{name}"{suggestion} Known formats: {", ".join(FORMAT_BY_NAME)}'
        )
    return FORMAT_BY_NAME[name]
