"""Every geometric change of an image as one 3x3 matrix on points (x, y, 1).

Coordinates are continuous pixels: pixel i covers [i, i + 1). Matrices are float64 [3, 3] and are
composed before anything is moved: an image is warped once, its boxes, polygons and keypoints are
moved once. A matrix with a negative determinant mirrors, so that left and right keypoints swap.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

Matrix = Float64[np.ndarray, "3 3"]


def compose(*matrices: Matrix) -> Matrix:
    """Returns one matrix for all, the first applied first."""
    whole = np.eye(3)
    for matrix in matrices:
        whole = matrix @ whole
    return whole


def scale(x: float, y: float) -> Matrix:
    """Multiplies x and y."""
    return np.diag([x, y, 1.0])


def translate(x: float, y: float) -> Matrix:
    """Adds to x and y."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def flip_horizontal(width: float) -> Matrix:
    """Exchanges left and right of an image of this width."""
    return np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def flip_vertical(height: float) -> Matrix:
    """Exchanges top and bottom of an image of this height."""
    return np.array([[1.0, 0.0, 0.0], [0.0, -1.0, height], [0.0, 0.0, 1.0]])


def quarter_turns(count: int, size: tuple[float, float]) -> Matrix:
    """Rotates an image counterclockwise by right angles, into its new frame.

    Args:
        count: number of right angles.
        size: (height, width) of the image before.
    """
    matrix = np.eye(3)
    height, width = size
    for _ in range(count % 4):
        matrix = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, width], [0.0, 0.0, 1.0]]) @ matrix
        height, width = width, height
    return matrix


def rotate(degrees: float, center: tuple[float, float]) -> Matrix:
    """Rotates clockwise (y points down) about a point (x, y)."""
    cos = np.cos(np.deg2rad(degrees))
    sin = np.sin(np.deg2rad(degrees))
    rotation = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return compose(translate(-center[0], -center[1]), rotation, translate(*center))


def mirrored(matrix: Matrix) -> bool:
    """Returns whether left and right are swapped."""
    return bool(np.linalg.det(matrix[:2, :2]) < 0)


def is_axis_aligned(matrix: Matrix) -> bool:
    """Returns whether rows and columns stay rows and columns, or swap.

    That is the case without rotation, or with rotation by right angles.
    """
    size = np.abs(matrix[:2, :2])
    small = 1e-9 * size.max()
    return bool(
        (size[0, 1] <= small and size[1, 0] <= small)
        or (size[0, 0] <= small and size[1, 1] <= small)
    )


def move_points(matrix: Matrix, points: Float64[np.ndarray, "*n 2"]) -> Float64[np.ndarray, "*n 2"]:
    """Moves points (x, y)."""
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def move_boxes(matrix: Matrix, boxes: Float64[np.ndarray, "*n 4"]) -> Float64[np.ndarray, "*n 4"]:
    """Moves boxes (xyxy); returns the bounds of their moved corners."""
    corners = move_points(matrix, boxes[..., [[0, 1], [2, 1], [2, 3], [0, 3]]])
    return np.concatenate([corners.min(axis=-2), corners.max(axis=-2)], axis=-1)
