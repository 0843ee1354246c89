"""A drawn fluorescence micrograph with exact truth, to show the shipped nuclei model without data.

In: a seed.
Out: an image uint8 [H, W, 3] of glowing nuclei on a dark background, single and in touching groups,
and their masks.

Each nucleus is an ellipse with a wavy contour and a mottled interior. The simulated microscope adds
blur, an uneven background, and the noise of light and camera.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFilter

FINE = 3  # canvas pixels per image pixel and axis


def draw_micrograph(
    seed: int, size: tuple[int, int] = (256, 320), nuclei: int = 36
) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "N H W"]]:
    """Draws one image.

    Args:
        seed: the same seed gives the same image.
        size: (height, width) in pixels; a nucleus is 16 to 30 px long.
        nuclei: approximate number; a nucleus that would cover others too much is left out.

    Returns:
        The image, and the mask of each nucleus. Where nuclei overlap, the upper one has the pixels.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    owner = np.zeros((height * FINE, width * FINE), np.uint16)
    light = np.zeros(owner.shape, np.float32)
    count = 0

    for center in _centers(rng, size, nuclei):
        polygon = _polygon(rng) + center
        silhouette = Image.new("1", (width * FINE, height * FINE))
        ImageDraw.Draw(silhouette).polygon([(x, y) for x, y in (polygon * FINE).tolist()], fill=1)
        inside = np.asarray(silhouette)
        if not inside.any() or (owner[inside] > 0).mean() > 0.25:
            continue
        count += 1
        owner[inside] = count
        light[inside] = rng.uniform(0.35, 1.0)

    masks = np.stack([_shrunk(owner == index) for index in range(1, count + 1)])
    return _photograph(rng, light, size), masks[masks.any(axis=(1, 2))]


def _centers(
    rng: np.random.Generator, size: tuple[int, int], nuclei: int
) -> list[Float[np.ndarray, "2"]]:
    """Centers (x, y) of single nuclei and of groups of two to four."""
    centers: list[np.ndarray] = []
    while len(centers) < nuclei:
        center = rng.uniform((-4, -4), (size[1] + 4, size[0] + 4))
        for _ in range(int(rng.choice([1, 2, 3, 4], p=[0.55, 0.25, 0.12, 0.08]))):
            centers.append(center)
            angle = rng.uniform(0, 2 * np.pi)
            center = center + rng.uniform(17, 23) * np.array([np.cos(angle), np.sin(angle)])
    return centers


def _polygon(rng: np.random.Generator) -> Float[np.ndarray, "n 2"]:
    """A wavy ellipse around the origin, in pixels."""
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    waves = sum(
        rng.normal(0, 0.06 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 6)
    )
    radius = rng.uniform(9, 14)
    squash = rng.uniform(0.65, 0.95)
    turn = rng.uniform(0, np.pi)
    x = radius * (1 + waves) * np.cos(angle)
    y = radius * squash * (1 + waves) * np.sin(angle)
    return np.stack(
        [x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1
    )


def _shrunk(fine: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "H W"]:
    """The pixels of which more than half is covered."""
    covered = sum(fine[y::FINE, x::FINE].astype(int) for y in range(FINE) for x in range(FINE))
    return np.asarray(covered > FINE**2 / 2)


def _photograph(
    rng: np.random.Generator, light: Float[np.ndarray, "h w"], size: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """The light as a microscope's camera records it."""
    height, width = size
    even = light.reshape(height, FINE, width, FINE).mean(axis=(1, 3))
    mottled = even * (0.8 + 0.4 * _clouds(rng, size, 5))
    sharp = Image.fromarray((mottled * 200).clip(0, 255).astype(np.uint8))
    blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(0.8)), np.float32)

    photons = blurred + 6 + 10 * _clouds(rng, size, 90)
    noisy = photons + rng.normal(0, 1.5, size) + np.sqrt(photons) * rng.normal(0, 0.5, size)
    return np.repeat(noisy.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _clouds(
    rng: np.random.Generator, size: tuple[int, int], pixels: int
) -> Float[np.ndarray, "H W"]:
    """A smooth random field, about 0 to 1, with one bump per `pixels` pixels."""
    coarse = rng.random((size[0] // pixels + 2, size[1] // pixels + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC))
