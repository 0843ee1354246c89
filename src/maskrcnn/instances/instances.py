"""`Instances`: the predictions for one image, to look at, select, and pass on.

N objects, best first: boxes [N, 4] xyxy, scores [N] and labels [N]; also masks and keypoints if the
model has those heads. Masks are kept as small grids on their boxes; `masks` converts them to dense
masks, to COCO RLE, to polygons or to areas.
"""

from __future__ import annotations

import difflib
import io
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, UInt8
from PIL import Image
from torch import Tensor

from ..annotations.coco_types import CocoResult
from ..annotations.contours import Polygon
from ..config import Category
from ..draw.overlay import OPACITY, draw_instances
from ..draw.style import Color, ColorChoice, Colors, FontChoice, one_color
from ..images.read import ImageError, read_image
from ..ops.paste_masks import Crop, PasteRule
from ..runtime.optional_packages import optional_package
from .instances_json import read_json_fields, write_json
from .masks import Masks
from .row_index import row_index

_NOTEBOOK_SIDE = 1600  # pixels of the longer side of an overlay in a notebook


@dataclass(frozen=True, eq=False)
class Instances:
    """The objects predicted in one image, best first.

    Indexing with an integer, a slice, a mask of booleans or a list of integers returns Instances
    again; iterating yields them one by one.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.micrograph import draw_micrograph
        >>> image, truth = draw_micrograph(0, (96, 128))
        >>> instances = mr.predict(mr.load("nuclei"), image)
        >>> confident = instances[instances.scores > 0.5]
        >>> 0 < len(confident) <= len(instances)
        True
        >>> nuclei = instances[instances.names == "nucleus"]
        >>> len(nuclei) == len(instances)
        True
    """

    size: tuple[int, int]
    """Height and width of the image."""
    boxes: Float[Tensor, "N 4"]
    """xyxy in continuous pixels, inside the image."""
    scores: Float[Tensor, "N"]
    """0..1."""
    labels: Int64[Tensor, "N"]
    """Indices into `categories`."""
    categories: tuple[Category, ...] = field(repr=False)
    """The model's categories."""
    mask_grids: Float[Tensor, "N S S"] | None = None
    """Probability 0..1 that a cell belongs to the object, over a grid on its box. None: no mask
    head."""
    keypoints: Float[Tensor, "N J 3"] | None = None
    """x, y, score (0..1). The keypoints of the object's category come first, followed by zeros.
    None: no keypoint head."""
    keypoint_logits: Float[Tensor, "N J"] | None = None
    """Height of each heat map's peak before normalization."""
    paste: PasteRule = "border"
    """How masks are drawn into the image (see `MaskHeadConfig.paste`)."""
    mask_threshold: float = 0.5
    """A pixel belongs to the object if its probability is at least this."""
    coco_offset: float = 0.5
    """Pixels added to COCO's integer keypoints to make them continuous."""
    image_id: int | None = None
    """The image's id in the annotation file, if known."""
    file_name: str | None = None
    """The image's file name, if known."""
    source: UInt8[np.ndarray, "H W 3"] | Path | None = field(default=None, repr=False)
    """The image, or the file to read it from again. None: unknown."""
    intensity_range: tuple[float, float] | None = None
    """Values of a 16-bit or float `source` file that map to 0 and 255. None: its type's full
    range."""

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int | slice | Tensor | np.ndarray | Sequence[Any]) -> Instances:
        rows = row_index(index, len(self))
        parts = {
            name: getattr(self, name)
            for name in ("boxes", "scores", "labels", "mask_grids", "keypoints", "keypoint_logits")
        }
        return replace(
            self, **{name: part[rows] for name, part in parts.items() if part is not None}
        )

    def __iter__(self) -> Iterator[Instances]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        counted = Counter(self.names.tolist())
        counts = ", ".join(f"{count} {name}" for name, count in counted.most_common())
        file_name = f"{self.file_name}, " if self.file_name else ""
        return f"Instances({file_name}{self.size[0]}x{self.size[1]}: {counts or 'no objects'})"

    @property
    def names(self) -> np.ndarray:
        """The category name of each object, an array of text that compares by element.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(0, (96, 128))[0])
            >>> instances.names[0] == "nucleus"
            True
            >>> (instances.names == "nucleus").tolist() == [True] * len(instances)
            True
        """
        return np.array([self.categories[label].name for label in self.labels.tolist()], dtype=str)

    @property
    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """The image, RGB; read from its file again if `source` is a path.

        Raises:
            ValueError: these instances carry no image, or it has another size than they.
            ImageError: the file cannot be read.
        """
        if self.source is None:
            raise ValueError(
                "these instances carry no image; "
                "add it: dataclasses.replace(instances, source=image)"
            )

        pixels = self.source
        if isinstance(pixels, Path):
            # the file was read before, perhaps with a higher limit
            pixels = read_image(pixels, self.intensity_range, self.size[0] * self.size[1])
        if pixels.shape[:2] != self.size:
            name = f"{self.source}: " if isinstance(self.source, Path) else ""
            raise ValueError(
                f"{name}expected the instances' image of {self.size[0]}x{self.size[1]} pixels "
                f"(height x width), got {pixels.shape[0]}x{pixels.shape[1]}"
            )
        return pixels

    @property
    def masks(self) -> Masks:
        """The masks, not yet drawn into the image.

        Call `.dense()`, `.rle()` or `.area()` on them, or iterate to get one crop per object.

        Raises:
            ValueError: the model has no mask head.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(0, (96, 128))[0])
            >>> instances.masks.area().min() > 0
            tensor(True)
            >>> instances.masks.rle()[0]["size"]
            [96, 128]
        """
        if self.mask_grids is None:
            raise ValueError("no masks: the model has no mask head (its config's mask is None)")
        return Masks(self.mask_grids, self.boxes, self.size, self.paste, self.mask_threshold)

    def filter(
        self, names: str | Sequence[str] | None = None, *, min_score: float = 0.0
    ) -> Instances:
        """Returns the objects of some categories, or with high scores, in the same order.

        Args:
            names: a category's name, or several. None: all categories.
            min_score: leave out objects with a lower score, 0 to 1.

        Raises:
            ValueError: a name is not one of the model's categories, or the score is out of range.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(0, (96, 128))[0])
            >>> confident = instances.filter("nucleus", min_score=0.9)
            >>> len(confident) == (instances.scores >= 0.9).sum()
            tensor(True)
        """
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score: expected 0 to 1, got {min_score!r}")
        kept = self.scores.cpu().numpy() >= np.float32(min_score)
        if names is not None:
            wanted = [names] if isinstance(names, str) else list(names)
            self._check_names(wanted)
            kept &= np.isin(self.names, wanted)
        return self[kept]

    def polygons(self, simplify: float = 0.0, holes: bool = True) -> list[list[Polygon]]:
        """Returns the contours of each object's mask, along the edges of its pixels.

        Each object has a list of contours, points (x, y) in pixels of the image: one for each
        connected part, clockwise as seen on the screen, and one for each hole, counterclockwise.
        Filled together by the even-odd or the nonzero rule, they give the mask again.

        Args:
            simplify: tolerance in pixels; larger values give fewer points. 0: exact.
            holes: include the contours of holes.

        Raises:
            ValueError: the model has no mask head, or the tolerance is negative.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(0, (96, 128))[0])
            >>> exact = instances.polygons()
            >>> simple = instances.polygons(simplify=1.0, holes=False)
            >>> exact[0][0].shape[1], len(simple[0][0]) < len(exact[0][0])
            (2, True)
        """
        return self.masks.polygons(simplify, holes)

    def crops(
        self, margin: int = 0, background: ColorChoice | None = None
    ) -> list[UInt8[np.ndarray, "h w 3"]]:
        """Returns the part of the image around each object, RGB.

        Args:
            margin: pixels added on each side of the box, as far as the image reaches.
            background: color of the pixels outside the object's mask: a name, "#rrggbb", or three
                numbers 0 to 255. None: leave them.

        Raises:
            ValueError: these instances carry no image, the margin is negative, the background is no
                color, or there are no masks for one.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(0, (96, 128))[0])
            >>> crops = instances.crops(margin=4, background="black")
            >>> len(crops) == len(instances), crops[0].shape[2]
            (True, 3)
        """
        if margin < 0:
            raise ValueError(f"margin: expected 0 or more pixels, got {margin!r}")
        image = self.image
        height, width = self.size
        boxes = self.boxes.double().cpu().numpy()
        starts = np.floor(boxes[:, :2]) - margin
        stops = np.maximum(np.ceil(boxes[:, 2:]), np.floor(boxes[:, :2]) + 1) + margin
        limit = (width, height)
        corners = np.concatenate([starts.clip(0, limit), stops.clip(0, limit)], axis=1)

        crops = [image[y0:y1, x0:x1].copy() for x0, y0, x1, y1 in corners.astype(int)]
        if background is not None:
            color = one_color(background)
            for crop, mask, (x0, y0, _, _) in zip(
                crops, self.masks, corners.astype(int), strict=True
            ):
                _clear_outside(crop, mask, x0, y0, color)
        return crops

    def label_image(self) -> Int32[np.ndarray, "H W"]:
        """Returns an image of labels: n + 1 on the pixels of object n, and 0 elsewhere.

        Where masks overlap, the object that comes first has the pixel. scikit-image and other tools
        for label images take the result as it is.

        Raises:
            ValueError: the model has no mask head.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(0, (96, 128))[0])
            >>> labels = instances.label_image()
            >>> labels.shape, labels.dtype.name
            ((96, 128), 'int32')
        """
        return self.masks.label_image()

    def to_coco(self, image_id: int | None = None) -> list[CocoResult]:
        """Converts to COCO results, one dictionary per object.

        Args:
            image_id: the image's id in the annotation file; by default the instances' own, else
                1, as for the first of several images. Give results of different images different
                ids.

        Returns:
            image_id, category_id, category_name, score and bbox (xywh); file_name if known;
            segmentation (compressed RLE) if the model has a mask head; keypoints if the object's
            category has them: x, y, score each, in COCO's pixel convention.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(0, (96, 128))[0])
            >>> results = instances.to_coco()
            >>> sorted(results[0])
            ['bbox', 'category_id', 'category_name', 'image_id', 'score', 'segmentation']
        """
        if image_id is None:
            image_id = 1 if self.image_id is None else self.image_id

        boxes = self.boxes.double().cpu()
        xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
        bboxes = xywh.numpy().round(4).tolist()
        rle = self.masks.rle() if self.mask_grids is not None else None
        keypoints = self._coco_keypoints() if self.keypoints is not None else None

        origin = {"image_id": image_id} | ({"file_name": self.file_name} if self.file_name else {})
        results = []
        for n, (label, score) in enumerate(
            zip(self.labels.tolist(), self.scores.tolist(), strict=True)
        ):
            category = self.categories[label]
            entry = cast(
                CocoResult,
                {
                    **origin,
                    "category_id": category.id,
                    "category_name": category.name,
                    "bbox": bboxes[n],
                    "score": score,
                },
            )
            if rle is not None:
                entry["segmentation"] = rle[n]
            if keypoints is not None and category.keypoints:
                entry["keypoints"] = keypoints[n, : len(category.keypoints)].ravel().tolist()
            results.append(entry)
        return results

    def to_supervision(self) -> Any:
        """Converts to `supervision.Detections`, for the package supervision.

        Returns:
            Boxes, dense masks, confidence and class ids; names and keypoints in `data`.

        Raises:
            ImportError: the package supervision is not installed.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(0, (96, 128))[0])
            >>> try:
            ...     count = len(instances.to_supervision())
            ... except ImportError:  # supervision is not installed
            ...     count = len(instances)
            >>> count == len(instances)
            True
        """
        supervision = optional_package("to_supervision()", "supervision", "supervision")
        data: dict[str, Any] = {"class_name": self.names}
        if self.keypoints is not None:
            data["keypoints"] = self.keypoints.cpu().numpy()

        return supervision.Detections(
            xyxy=self.boxes.cpu().numpy(),
            mask=None if self.mask_grids is None else self.masks.dense().numpy(),
            confidence=self.scores.cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            data=data,
        )

    def to_pandas(self) -> Any:
        """Converts to a `pandas.DataFrame`, one row per object.

        Returns:
            image_id, file_name, category, category_id, score, and the box x0, y0, x1, y1 in pixels;
            area in pixels if the model has a mask head; NAME_x, NAME_y and NAME_score of each
            keypoint, NaN where the object's category does not have it.

        Raises:
            ImportError: the package pandas is not installed.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(0, (96, 128))[0])
            >>> try:
            ...     count = len(instances.to_pandas())
            ... except ImportError:  # pandas is not installed
            ...     count = len(instances)
            >>> count == len(instances)
            True
        """
        pandas = optional_package("to_pandas()", "pandas", "pandas")
        labels = self.labels.tolist()
        table: dict[str, Any] = {
            "image_id": [self.image_id] * len(self),
            "file_name": [self.file_name] * len(self),
            "category": self.names.tolist(),
            "category_id": [self.categories[label].id for label in labels],
            "score": self.scores.cpu().numpy(),
        }
        corners = self.boxes.cpu().numpy()
        table |= {name: corners[:, n] for n, name in enumerate(("x0", "y0", "x1", "y1"))}
        if self.mask_grids is not None:
            table["area"] = self.masks.area().numpy()
        return pandas.DataFrame(table | self._keypoint_columns())

    def to_json(self) -> str:
        """Returns everything but the image as JSON text, which `from_json` reads without a loss.

        For results in a format that other tools read, use `to_coco`.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(0, (96, 128))[0])
            >>> again = mr.Instances.from_json(instances.to_json())
            >>> bool((again.mask_grids == instances.mask_grids).all())
            True
        """
        return write_json({part.name: getattr(self, part.name) for part in fields(self)})

    @classmethod
    def from_json(
        cls,
        source: str | bytes | Path,
        image: UInt8[np.ndarray, "H W 3"] | str | Path | None = None,
        *,
        max_pixels: int | None = None,
    ) -> Instances:
        """Reads what `to_json` returned.

        Text from elsewhere is safe to read: it runs no code, and every value is checked. At most
        128 MiB are read.

        Args:
            source: the text, or the file (a `Path`) that holds it.
            image: the image or its file, for overlays and crops; JSON does not hold it.
            max_pixels: width x height of the largest image that is accepted; by default that of
                MASKRCNN_MAX_PIXELS, else 500 million.

        Raises:
            DataError: the text is not such JSON; the message names the value.

        Example:
            >>> import maskrcnn as mr
            >>> from pathlib import Path
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> image = draw_micrograph(0, (96, 128))[0]
            >>> instances = mr.predict(mr.load("nuclei"), image)
            >>> size = Path("nuclei.json").write_text(instances.to_json())
            >>> mr.Instances.from_json(Path("nuclei.json"), image).plot().size
            (128, 96)
        """
        values = read_json_fields(source, max_pixels)
        return cls(**values, source=Path(image) if isinstance(image, str) else image)

    def plot(
        self,
        image: UInt8[np.ndarray, "H W 3"] | Image.Image | None = None,
        *,
        boxes: bool = True,
        masks: bool = True,
        keypoints: bool = True,
        names: bool = True,
        scores: bool = True,
        colors: Colors | None = None,
        font: FontChoice | None = None,
        font_size: float | None = None,
        line_width: float | None = None,
        opacity: float = OPACITY,
        enlarge: bool = False,
    ) -> Image.Image:
        """Returns the image with its objects drawn on it; see `draw_instances`.

        Args:
            image: the image to draw on; by default the instances' own.
            boxes: draw boxes.
            masks: draw masks.
            keypoints: draw skeletons.
            names: write category names where there is room.
            scores: write scores after the names.
            colors: one color, a list of colors, or a mapping from category names to colors.
            font: of the names, a TrueType or OpenType file.
            font_size: height of the letters in pixels.
            line_width: of boxes, contours and limbs in pixels.
            opacity: of the fill of masks, 0 to 1.
            enlarge: enlarge an image below 640 px.

        Raises:
            ValueError: no image, or an argument is invalid.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(0, (96, 128))[0])
            >>> overlay = instances.plot(colors=["#ffcc00", "cyan"], line_width=2, font_size=11)
            >>> overlay.save("nuclei.png")
        """
        return draw_instances(
            self,
            image,
            boxes=boxes,
            masks=masks,
            keypoints=keypoints,
            names=names,
            scores=scores,
            colors=colors,
            font=font,
            font_size=font_size,
            line_width=line_width,
            opacity=opacity,
            enlarge=enlarge,
        )

    def save(self, path: str | Path) -> None:
        """Draws the objects on the image and writes it to a file; `plot` has options.

        Args:
            path: the file; its suffix determines the format, such as .png or .jpg.

        Raises:
            ValueError: these instances carry no image, or the suffix is unknown.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(0, (96, 128))[0])
            >>> instances.save("nuclei.png")
        """
        self.plot().save(path)

    def _repr_png_(self) -> bytes | None:
        """The overlay for a notebook, at most 1,600 px wide; None, which shows text, without an
        image."""
        if self.source is None:
            return None
        try:
            overlay = self.plot()
        except ImageError as error:
            warnings.warn(f"no overlay: {error}", stacklevel=2)
            return None

        overlay.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))
        buffer = io.BytesIO()
        overlay.save(buffer, "PNG", compress_level=3)
        return buffer.getvalue()

    def _check_names(self, wanted: Sequence[str]) -> None:
        known = [category.name for category in self.categories]
        for name in wanted:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=3)
                suggestion = f"the model has {', '.join(known[:10])}"
                if near:
                    suggestion = f"did you mean {', '.join(near)}?"
                raise ValueError(f'unknown category "{name}"; {suggestion}')

    def _keypoint_columns(self) -> dict[str, Float[np.ndarray, "N"]]:
        """x, y and score of each named keypoint, NaN where an object does not have it."""
        columns: dict[str, Float[np.ndarray, "N"]] = {}
        if self.keypoints is None:
            return columns
        values = self.keypoints.cpu().numpy()
        labels = self.labels.cpu().numpy()
        for label, category in enumerate(self.categories):
            rows = labels == label
            for n, keypoint in enumerate(category.keypoints):
                for k, part in enumerate(("x", "y", "score")):
                    empty = np.full(len(self), np.nan, np.float32)
                    column = columns.setdefault(f"{keypoint}_{part}", empty)
                    column[rows] = values[rows, n, k]
        return columns

    def _coco_keypoints(self) -> Float[np.ndarray, "N J 3"]:
        assert self.keypoints is not None
        keypoints = self.keypoints.double().cpu().numpy().copy()
        keypoints[..., :2] = (keypoints[..., :2] - self.coco_offset).round(4)
        return keypoints


def _clear_outside(
    crop: UInt8[np.ndarray, "h w 3"], mask: Crop, x0: int, y0: int, color: Color
) -> None:
    """Fills the pixels of a crop, which starts at (x0, y0) of the image, outside of a mask."""
    inside = np.zeros(crop.shape[:2], bool)
    height, width = mask.mask.shape
    rows = slice(max(mask.y0 - y0, 0), max(mask.y0 - y0 + height, 0))
    columns = slice(max(mask.x0 - x0, 0), max(mask.x0 - x0 + width, 0))
    part = mask.mask[max(y0 - mask.y0, 0) :, max(x0 - mask.x0, 0) :]
    shown = inside[rows, columns]
    shown[:] = part[: shown.shape[0], : shown.shape[1]]
    crop[~inside] = color
