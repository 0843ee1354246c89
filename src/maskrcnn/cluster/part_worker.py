"""The work of one process: a part of the source in, its file out: `PartWorker(setup)(part)`.

In:  parts.
Out: OUT/parts/part-NNNNNNNN.parquet, and what its footer says.

A file that is there and has these images is not made again. In a file whose images have changed,
the rows of those that remain are kept. A broken image becomes a row with its error.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..images.open_image import ImageError
from ..instances import Instances
from ..model.maskrcnn import MaskRCNN
from ..prediction.image_sources import ImageSource
from ..prediction.model_engine import Dtype, ModelEngine
from ..prediction.predictor import Predictor
from .counted_images import CountedImages
from .file_states import FileState
from .file_stores import OutputFolder, StoreError, is_store
from .image_reader import Fetched, read_row, read_rows
from .image_rows import ImageRow, Part
from .part_files import (
    FOLDER,
    PartInfo,
    PartWriter,
    StoredImage,
    read_info,
    read_part,
    stored_object,
    stored_state,
)

_FAULTS = 8
"""So many failures that are no image's fault, without any success, end the job."""
_SHOWN = 5
_INDEX = re.compile(r"^images\[\d+\]: ")


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs, in any process and on any machine."""

    out: str
    settings: str
    """`JobSettings.digest`."""
    model: MaskRCNN | Path
    device: str | None
    dtype: Dtype | None
    exact: bool
    tta: str | None
    min_score: float
    intensity_range: tuple[float, float] | None
    max_pixels: int
    batch_size: int
    image_column: str | None = None
    retry_errors: bool = False
    retry_changed: bool = False

    def predictor(self) -> Predictor:
        """The predictor of these settings."""
        return Predictor(
            self.model,
            device=self.device,
            dtype=self.dtype,
            exact=self.exact,
            tta=self.tta,
            min_score=self.min_score,
            intensity_range=self.intensity_range,
            max_pixels=self.max_pixels,
        )


@dataclass
class PartDone:
    """What a worker reports about a part."""

    info: PartInfo
    is_old: bool
    """Whether its file was there."""
    errors: list[str] = field(default_factory=list)
    """The first errors of images in it; none if it is old."""
    uncompared: CountedImages = field(default_factory=CountedImages)
    """Images that are kept without knowing whether their files have changed."""


@dataclass
class _Progress:
    """A part while it is computed: its rows by number, until the one before is written."""

    part: Part
    writer: PartWriter
    done: dict[int, StoredImage] = field(default_factory=dict)
    written: int = 0
    errors: list[str] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    """Failures that are no image's fault since the last success, also in the parts before."""
    frames: set[int] = field(default_factory=set)
    has_success: bool = False
    states: dict[str, FileState | None] = field(default_factory=dict)
    """Of the files, by location, before they were read."""
    uncompared: CountedImages = field(default_factory=CountedImages)
    """Images that are kept without knowing whether their files have changed."""

    def add(self, number: int, row: StoredImage) -> None:
        """Adds a finished row, and writes those whose turn it is."""
        self.done[number] = row
        while (next_row := self.done.pop(self.written, None)) is not None:
            self.writer.add(next_row)
            self.written += 1

    def is_missing(self, number: int) -> bool:
        return number >= self.written and number not in self.done

    @property
    def is_complete(self) -> bool:
        return self.written == len(self.part.rows)

    @property
    def is_hopeless(self) -> bool:
        """Whether the job should end."""
        return len(self.faults) >= _FAULTS and not self.has_success

    def state(self, number: int) -> FileState | None:
        """The state of an image's file; None: unknown, without a request of its own."""
        row = self.part.rows[number]
        location = row.location
        is_object = location is not None and is_store(location) and row.group is None
        if row.state is not None or location is None or is_object:
            return row.state
        if location not in self.states:
            self.states[location] = FileState.of(location)
        return self.states[location]


class PartWorker:
    """Predicts parts and writes their files.

    Args:
        setup: its settings.
        predictor: by default that of the settings.
    """

    def __init__(self, setup: WorkerSetup, predictor: Predictor | None = None) -> None:
        self.setup = setup
        self.folder = OutputFolder(setup.out)
        self.predictor = predictor or setup.predictor()
        engine = self.predictor.engine
        self._precision = "float32"
        if isinstance(engine, ModelEngine):
            dtype = next(engine.network.parameters()).dtype
            self._precision = str(dtype).removeprefix("torch.")
        self._computer = f"{socket.gethostname()} {os.getpid()}"
        self._faults: list[Exception] = []
        self._in_vain: list[str] = []
        """Files of the parts with these faults that hold nothing else."""

    def __call__(self, part: Part) -> PartDone:
        """Makes the file of a part, unless it is there.

        Raises:
            WriteError: the disk is full or fails.
            StoreError: a store fails for all images.
        """
        name = f"{FOLDER}/{part.name}"
        old = read_info(self.folder, name)
        if old is not None and old.settings != self.setup.settings:
            old = None
        same = old if old is not None and old.digest == part.digest else None
        has_retries = same is not None and self.setup.retry_errors and same.errors > 0
        if same is not None and not has_retries and not self.setup.retry_changed:
            return PartDone(same, is_old=True)

        info = PartInfo(
            index=part.index,
            digest=part.digest,
            settings=self.setup.settings,
            precision=self._precision,
            computer=self._computer,
        )
        progress = _Progress(part, PartWriter(info), faults=list(self._faults))
        if old is not None:
            self._keep_rows(progress, name)
        if same is not None and progress.is_complete:
            return PartDone(same, is_old=True, uncompared=progress.uncompared)
        self._predict(progress)
        self.folder.write(name, progress.writer.content())
        self._count_faults(progress, name)
        errors = progress.errors[:_SHOWN]
        return PartDone(info, is_old=False, errors=errors, uncompared=progress.uncompared)

    def _count_faults(self, progress: _Progress, name: str) -> None:
        """Remembers faults until an image succeeds, so that small parts cannot hide them."""
        if progress.has_success:
            self._faults = []
            self._in_vain = []
        elif len(progress.faults) > len(self._faults) and not progress.writer.info.images:
            self._faults = progress.faults
            self._in_vain.append(name)

    def _keep_rows(self, progress: _Progress, name: str) -> None:
        """Takes over the rows of images that are in the old file of the part."""
        old = {
            row["key"]: row
            for row in read_part(self.folder, name)
            if not (self.setup.retry_errors and row["error"])
        }

        for number in range(len(progress.part.rows)):
            new = self._row(progress, number)
            kept = old.get(new["key"])
            if kept is None or kept["location"] != new["location"]:
                continue
            if self.setup.retry_changed:
                has_changed = _has_changed(kept, progress.state(number))
                if has_changed:
                    continue
                if has_changed is None and kept["error"] is None:
                    progress.uncompared.add(new["key"])

            same = {name: new[name] for name in ("image_id", "file_name", "row_group", "row")}
            progress.add(number, {**kept, **same})

    def _predict(self, progress: _Progress) -> None:
        """Predicts the rows that are missing."""

        def skip(source: ImageSource, error: ImageError) -> None:
            number = source.image_id
            assert number is not None
            self._add_error(progress, number, _INDEX.sub("", str(error)))

        sources = self._sources(progress)
        try:
            stream = self.predictor.stream(
                sources, self.setup.batch_size, on_error=skip, on_frames=self._noting(progress)
            )
            for instances in stream:
                self._add(progress, instances)
        # whatever an image leads to; it may have broken its batch: each is tried alone
        except Exception as error:
            self._predict_alone(progress, error)
        if progress.is_hopeless:
            for name in self._in_vain:  # of a store or a machine that fails; a later run may not
                self.folder.remove(name)
            raise progress.faults[0]

    def _sources(self, progress: _Progress) -> Iterator[ImageSource]:
        """The images that are missing, with their number in the part as id."""
        missing = [(n, row) for n, row in enumerate(progress.part.rows) if progress.is_missing(n)]
        for number, _ in missing:
            progress.state(number)  # before the file is read
        for number, row, fetched in read_rows(missing, self.setup.image_column):
            if isinstance(fetched, Exception):
                self._add_fetch_error(progress, number, row, fetched)
            else:
                yield ImageSource(fetched, number, row.file_name)

    def _predict_alone(self, progress: _Progress, first: Exception) -> None:
        for number, row in enumerate(progress.part.rows):
            if not progress.is_missing(number):
                continue

            try:
                image = read_row(row, self.setup.image_column)
                source = ImageSource(image, number, row.file_name)
                stream = self.predictor.stream([source], on_frames=self._noting(progress))
                self._add(progress, next(stream))
            except ImageError as error:
                self._add_error(progress, number, _INDEX.sub("", str(error)))
            except Exception as error:
                progress.faults.append(error)
                self._add_error(progress, number, f"{type(error).__name__}: {error or first}")
                if progress.is_hopeless:
                    return

    def _noting(self, progress: _Progress) -> Callable[[ImageSource], None]:
        """A function that notes an image with several frames."""
        return lambda source: progress.frames.add(source.image_id or 0)

    def _add_fetch_error(
        self, progress: _Progress, number: int, row: ImageRow, error: Fetched
    ) -> None:
        if isinstance(error, StoreError):
            progress.faults.append(error)
        text = str(error)
        is_named = row.location is not None and row.location in text
        self._add_error(progress, number, text if is_named else f"{row.key}: {text}")

    def _add(self, progress: _Progress, instances: Instances) -> None:
        number = instances.image_id
        assert number is not None
        results = instances.to_coco(progress.part.image_id(number))
        row = self._row(progress, number)
        height, width = instances.size
        objects = [stored_object(result) for result in results]

        progress.has_success = True
        progress.add(
            number,
            {
                **row,
                "height": height,
                "width": width,
                "several_frames": number in progress.frames,
                "objects": objects,
            },
        )

    def _add_error(self, progress: _Progress, number: int, text: str) -> None:
        row = progress.part.rows[number]
        text = storable(text.replace("the given bytes", row.key, 1))
        progress.errors.append(text)
        progress.add(number, {**self._row(progress, number), "error": text})

    def _row(self, progress: _Progress, number: int) -> StoredImage:
        """The row of an image without predictions."""
        row = progress.part.rows[number]
        state = progress.state(number)

        return {
            "key": storable(row.key),
            "image_id": progress.part.image_id(number),
            "file_name": storable(row.file_name),
            "location": None if row.location is None else storable(row.location),
            "row_group": row.group,
            "row": None if row.group is None else row.offset,
            "file_size": None if state is None else state.size,
            "modified": None if state is None else state.modified,
            "height": None,
            "width": None,
            "several_frames": None,
            "error": None,
            "objects": [],
        }


def _has_changed(kept: StoredImage, now: FileState | None) -> bool | None:
    """Whether the file of an image is another one than when it was predicted; None: unknown."""
    before = stored_state(kept)
    if before is None or now is None:
        return None
    return now.differs_from(before)


def storable(text: str) -> str:
    """Text that parquet can hold: bytes of a name that are not UTF-8 are written as \\udcXX."""
    return text.encode("utf-8", "backslashreplace").decode()
