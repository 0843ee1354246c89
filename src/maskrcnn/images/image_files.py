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
    """Lists all images under a folder, sorted, recognized by suffix.

    Hidden files and folders are skipped.

    Raises:
        ValueError: the folder contains no images.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import maskrcnn as mr
        >>> Path("photos").mkdir()
        >>> Image.new("RGB", (8, 8)).save("photos/a.png")
        >>> [path.name for path in mr.image_files("photos")]
        ['a.png']
    """
    folder = Path(folder)
    files = [path for path in images_in(folder) if not _hidden(path.relative_to(folder))]
    if not files:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{folder}: no images in this folder; looked for {suffixes}")
    return files


def images_in(folder: Path, deep: bool = True) -> list[Path]:
    """Lists the images of a folder, sorted; with `deep`, also those of its subfolders."""
    entries = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
