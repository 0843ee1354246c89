"""What to do about an image that cannot be read, where images are predicted.

In:  an `ImageError`, whose own advice holds everywhere.
Out: the same error with advice for `predict`, `predict_files` and `predict_dataset`, which have
     settings for such images and take some other files in place of images.
"""

from __future__ import annotations

from ..images.file_kind import Use
from ..images.open_image import (
    MAX_PIXELS_VARIABLE,
    ImageError,
    OtherFileError,
    TooManyPixelsError,
    UnusualValuesError,
)

_IMAGES = "pass the images or their folder"
_OF_FILE: dict[Use, str] = {
    "annotations": f"{_IMAGES}, or measure AP with maskrcnn evaluate MODEL --data FILE",
    "detections": f"{_IMAGES}, or measure AP with maskrcnn evaluate FILE --data ANNOTATIONS",
    "list of images": f"{_IMAGES}; maskrcnn predict reads such a file with --shard 1/1",
    "model": "the model comes first: maskrcnn predict MODEL IMAGES",
    "array": "pass numpy.load(file), or save it as a PNG or TIFF",
}


def advised_for_predict(error: ImageError) -> ImageError:
    """The error with what a caller of `predict` can do."""
    if isinstance(error, TooManyPixelsError):
        number = error.pixels
        return error.advised(
            f"if you trust the file, raise the limit: max_pixels={number}, "
            f"--max-pixels {number} or {MAX_PIXELS_VARIABLE}"
        )
    if isinstance(error, UnusualValuesError):
        return error.advised(
            f"{error.advice}, or pass intensity_range=(low, high) (--intensity-range LOW HIGH)"
        )
    if isinstance(error, OtherFileError) and error.use is not None:
        return error.advised(_OF_FILE[error.use])
    return error
