"""A job of `predict_dataset`: its source, its folder and settings, and who makes its parts.

In:  what a worker needs, and a source.
Out: a summary of the parts that were made; OUT/settings.json, and the record of a shard.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..model.maskrcnn import MaskRCNN
from ..ops.device import usable_device
from ..prediction.graph_engine import is_graph_file
from ..prediction.predictor import Predictor
from ..runtime.atomic_files import stating_what_is_safe
from ..runtime.counted import counted
from ..runtime.progress import progress as progress_bar
from .dataset_summary import DatasetSummary
from .file_stores import OutputFolder
from .image_rows import Listing, cut_parts
from .job_settings import NAME as SETTINGS
from .job_settings import JobSettings, model_digest
from .part_worker import PartDone, PartWorker, WorkerSetup
from .row_sources import RowSource, open_source
from .shards import Shard, ShardRecord

_SHOWN = 3  # inputs in a message


@dataclass(frozen=True)
class DatasetJob:
    """A source of images, and the folder that their predictions go to."""

    source: str
    """As text, for messages."""
    rows: RowSource
    out: str
    """The folder as it was given."""
    folder: OutputFolder
    setup: WorkerSetup
    predictor: Predictor
    settings: JobSettings
    part_size: int | None
    is_new: bool
    """Whether the folder had no settings before."""

    @classmethod
    def begin(
        cls,
        setup: WorkerSetup,
        source: str | Path | Sequence[str | Path],
        out: str | Path,
        *,
        part_size: int | None,
        images: str | Path | None,
        id_column: str | None,
        is_elsewhere: bool,
    ) -> DatasetJob:
        """Opens the source, and writes the settings to the folder or compares them.

        Args:
            setup: of the workers; the digest of the settings is filled in.
            source: see `predict_dataset`, like the next four.
            out: the folder.
            part_size: images per file.
            images: folder of the images of a list or COCO file.
            id_column: of a table.
            is_elsewhere: the workers are other processes, whose devices may be others.

        Raises:
            FileNotFoundError: the source does not exist.
            ValueError: the folder has results of other settings.
        """
        folder = OutputFolder(out)
        rows = open_source(
            source,
            out=setup.out,
            images=images,
            image_column=setup.image_column,
            id_column=id_column,
        )
        if not is_elsewhere and setup.device is None and isinstance(setup.model, MaskRCNN):
            setup = replace(setup, device=str(usable_device(None)))
        predictor = (replace(setup, device="cpu") if is_elsewhere else setup).predictor()

        described = _described(source, images)
        settings = _settings_of(setup, described, predictor, part_size, id_column)
        return cls(
            source=_described(source),
            rows=rows,
            out=str(out),
            folder=folder,
            setup=replace(setup, settings=settings.digest),
            predictor=predictor,
            settings=settings,
            part_size=part_size,
            is_new=settings.write(folder),
        )

    def by_this_process(self, shard: Shard) -> Iterator[PartDone | Listing]:
        """Makes the parts of a shard; the listing of the whole source comes last."""
        worker = PartWorker(self.setup, self.predictor)
        listing = Listing()
        for part in cut_parts(self.rows.rows(), self.part_size, listing):
            if shard.has(part.index):
                yield worker(part)
        listing.notes = self.rows.notes()
        yield listing

    def by_ray(
        self, workers: int | None, cpus: float, gpus: float | None
    ) -> Iterator[PartDone | Listing]:
        """Lets Ray's workers make all parts; see `predict_dataset` for the arguments."""
        from .ray_engine import ray_results

        return ray_results(
            self.rows, self.setup, self.part_size, workers=workers, cpus=cpus, gpus=gpus
        )

    def followed(
        self, finished: Iterator[PartDone | Listing], shard: Shard, progress: bool
    ) -> DatasetSummary:
        """Counts the parts as they end, and at the end writes the record of the shard.

        Args:
            finished: parts, and the listing of the source.
            shard: which of them were to be made.
            progress: show how many images are done.

        Raises:
            ValueError: the source has no images.
        """
        self.folder.remove(shard.name)
        start = time.perf_counter()
        summary = DatasetSummary(self.out)
        listing = Listing()
        with (
            stating_what_is_safe(lambda: _what_is_safe(summary)),
            progress_bar("Predicting", None, show=progress) as advance,
        ):
            for done in finished:
                if isinstance(done, Listing):
                    listing = done
                else:
                    summary.add(done)
                    advance(done.info.images + done.info.errors)

        if not listing.images:
            if self.is_new:
                self.folder.remove(SETTINGS)
            raise ValueError("; ".join([f"{self.source}: no images", *listing.notes]))
        ShardRecord(shard, self.settings.digest, listing).write(self.folder)
        summary.notes = listing.notes
        summary.seconds = time.perf_counter() - start
        return summary


def location_of(out: str | Path) -> str:
    """The folder of the results, absolute, or the URL of an object store."""
    return str(out) if OutputFolder(out).path is None else os.path.abspath(out)


def loaded(model: MaskRCNN | str | Path) -> MaskRCNN | Path:
    """A model, or the absolute path of an exported file, which every process opens itself."""
    if isinstance(model, MaskRCNN):
        return model
    if is_graph_file(model):
        return Path(os.path.abspath(model))
    from ..weights.load import load

    return load(model)


def _settings_of(
    setup: WorkerSetup,
    source: str,
    predictor: Predictor,
    part_size: int | None,
    id_column: str | None,
) -> JobSettings:
    """What the results depend on."""
    keypoint = predictor.config.keypoint

    return JobSettings(
        model=model_digest(setup.model),
        source=source,
        min_score=setup.min_score,
        dtype=setup.dtype or "float32",
        exact=setup.exact,
        tta=setup.tta,
        intensity_range=predictor.intensity_range,
        max_pixels=setup.max_pixels,
        part_size=part_size,
        image_column=setup.image_column,
        id_column=id_column,
        coco_offset=keypoint.coco_offset if keypoint else 0.5,
        categories=predictor.config.categories,
    )


def _described(source: str | Path | Sequence[str | Path], images: str | Path | None = None) -> str:
    """The source as it is compared with that of an earlier run: absolute, so that it is one."""
    given = [source] if isinstance(source, str | Path) else list(source)
    if images is not None:
        given.append(images)
    texts = [str(one) if "://" in str(one) else os.path.abspath(one) for one in given]
    text = "\n".join(texts).encode("utf-8", "backslashreplace")
    if len(texts) > _SHOWN:
        digest = hashlib.blake2b(text, digest_size=8).hexdigest()
        return f"{texts[0]} and {len(texts) - 1:,} more ({digest})"
    return text.decode().replace("\n", ", ")


def _what_is_safe(summary: DatasetSummary) -> str:
    return (
        f"Safe in {summary.out}: {counted(summary.parts, 'part')} with "
        f"{counted(summary.images, 'image')}; "
        "the same command goes on"
    )
