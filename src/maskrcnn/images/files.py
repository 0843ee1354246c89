"""The image files of a folder."""

from __future__ import annotations

from pathlib import Path

IMAGE_SUFFIXES = frozenset(
    {
        ".bmp",
        ".gif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)


def image_files(folder: str | Path) -> list[Path]:
    """All images under a folder, recognized by suffix, sorted; hidden folders are skipped.

    Raises:
        ValueError: the folder contains none.
    """
    folder = Path(folder)
    files = images_in(folder)
    files = [path for path in files if not _hidden(path.relative_to(folder))]
    if not files:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{folder}: no images in this folder; looked for {suffixes}")
    return files


def images_in(folder: Path, deep: bool = True) -> list[Path]:
    """The images of a folder, sorted, also those of its subfolders if `deep`."""
    entries = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
