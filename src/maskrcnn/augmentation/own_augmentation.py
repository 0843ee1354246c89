"""`Augmentation`: random changes of one's own, after those of `AugmentConfig`."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from .augment import AugmentedView


class Augmentation:
    """Random changes of your own to training images: override one or both methods.

    Each example has its own generator, seeded by the image and the step. A run is therefore
    reproducible, also when it is resumed, as long as nothing else is random. With several
    `workers` on Windows or macOS the object must be picklable.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> class Darker(mr.Augmentation):
        ...     def pixels(self, image, rng):
        ...         return (image * rng.uniform(0.2, 1.0)).astype("uint8")
        >>> data = mr.load_dataset(write_scenes("scenes", 4, size=64))
        >>> model = mr.maskrcnn_r18_small(data.categories)
        >>> plain = mr.TrainingSet(data, model, mr.AugmentConfig())
        >>> darker = mr.TrainingSet(data, model, mr.AugmentConfig(), augmentation=Darker())
        >>> means = [images.example(0, seed=1).image.float().mean() for images in (plain, darker)]
        >>> bool(means[1] < means[0])
        True
    """

    def view(self, view: AugmentedView, rng: np.random.Generator) -> AugmentedView:
        """Changes the geometry: the matrix moves pixels, boxes, masks and keypoints alike.

        Args:
            view: the view that `AugmentConfig` has drawn.
            rng: the only source of randomness.

        Returns:
            The view with another matrix, such as `dataclasses.replace(view, matrix=m @ view.matrix,
            whole=False)`; `whole` says that it shows the whole image without a rotation.
        """
        return view

    def pixels(
        self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Changes the pixels and leaves all objects where they are.

        Args:
            image: RGB, as the model will see it. It may be changed in place.
            rng: the only source of randomness.

        Returns:
            An image of the same size and type.
        """
        return image


def changed_pixels(
    augmentation: Augmentation, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image that an augmentation returns.

    Raises:
        ValueError: it has another size or type.
    """
    wanted = f"uint8 {image.shape}"
    changed = np.asarray(augmentation.pixels(np.array(image), rng))
    if f"{changed.dtype} {changed.shape}" != wanted:
        raise ValueError(
            f"{type(augmentation).__name__}.pixels: expected an image of {wanted}, "
            f"got {changed.dtype} {changed.shape}"
        )
    return changed
