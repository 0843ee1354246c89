"""Bounds the pixels that are decoded at once, whatever the number of requests."""

from __future__ import annotations

import asyncio
from collections import deque


class PixelBudget:
    """Pixels that images take before they are decoded and give back when they are answered.

    Images wait in their order, so that a large one is not passed forever. Use it from one event
    loop.

    Args:
        total: pixels that may be taken at once.
    """

    def __init__(self, total: int) -> None:
        self.free = total
        """Pixels that are not taken."""
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, pixels: int) -> None:
        """Waits until so many pixels are free, and takes them."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, turn))
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove((pixels, turn))
                self._grant()
            else:  # granted and cancelled in the same moment
                self.give(pixels)
            raise

    def give(self, pixels: int) -> None:
        """Gives back pixels that were taken."""
        self.free += pixels
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.free:
            pixels, turn = self._waiting.popleft()
            self.free -= pixels
            turn.set_result(None)
