"""Watches the other processes of a training: when one fails or is lost, all end with a message.

In: the store of the process group, through which processes exchange small values. Out: `failure`, a
sentence that names the process and the reason, the same one in all processes.

A process whose exception ends the training reports it in the store. Every process counts up a value
there, so one that hangs, or whose machine or network is gone, is noticed by its silence. The main
process watches all others, and these watch the main process.

A process that waits in a collective operation returns from it as soon as a connection is closed.
If the connection stays open, which a machine without power cannot close, nothing can make the
operation return. Then this file ends the process after it has printed the message.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch.distributed as dist

LOST_AFTER = 120.0  # seconds of silence after which a process is lost
BEAT = 1.0  # seconds between signs of life
_SILENT = 2.5  # beats without a sign of life, once a connection is known to be closed
_PATIENCE = 4  # beats in which the cause of a closed connection is looked for
_GRACE = 10  # beats for a collective operation to return by itself
_READ = 2  # beats in which the others read a failure, before the store may end with this process
_IDLE = "idle"  # instead of a sign of life: this process does not work with the others now
_EXIT_STATUS = 2  # that of an error of the command line
_FAILURE = "failure"


class ProcessLostError(ConnectionError):
    """Another process of the training failed, was killed, or is out of reach."""


class ProcessWatch:
    """Watches the other processes while the block runs, in two threads.

    One exchanges signs of life. It may wait for the store without end if the machine of the store
    is gone. The other one notices that as well, and ends this process where nothing else can.

    Args:
        store: the store of the process group.
        rank: this process.
        world: number of processes.
        lost_after: seconds of silence after which a process is lost.
        beat: seconds between signs of life.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world: int,
        *,
        lost_after: float = LOST_AFTER,
        beat: float = BEAT,
    ) -> None:
        # A connection of its own: the group's is busy while it waits for a value.
        own = store.clone()
        # Keys of its own: those of an earlier run of the group may report that run's failure. All
        # processes make their watches in the same order.
        number = own.add(f"maskrcnn watches of {rank}", 1)
        self._store = dist.PrefixStore(f"maskrcnn {number}", own)
        self.rank = rank
        self.world = world
        self.lost_after = lost_after
        self.beat = beat
        self.failure = ""
        """Why all processes end; empty while all is well."""
        self.what_is_safe: Callable[[], str] = lambda: ""
        """What is saved and how to go on, as a sentence, for the message."""

        self._watched = [0] if rank else list(range(1, world))
        self._signs: dict[int, tuple[str, float]] = {}  # by rank: the last one, and when it changed
        self._count = 0
        self._waits = 0  # blocks of `waiting` that this process is in
        self._waits_since = 0.0
        self._heard = 0.0  # when the store answered last
        self._left = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> ProcessWatch:
        self._left.clear()
        self._signs.clear()
        self._sign(self._next_sign())
        self._heard = time.monotonic()
        self._threads = [
            threading.Thread(target=work, name="process watch", daemon=True)
            for work in (self._exchange, self._guard)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with contextlib.suppress(RuntimeError):  # the store may be gone with its process
            if error is not None and not self.failure:
                reason = next(iter(str(error).splitlines()), "")
                kind = type(error).__name__
                self._report(f"{self._name(self.rank)} stopped: {kind}: {reason}".rstrip(": "))
                time.sleep(_READ * self.beat)
            self._left.set()
            for thread in self._threads:
                thread.join(timeout=_READ * self.beat)
            if not self.failure:
                self._sign(_IDLE)
        self._left.set()

    @contextmanager
    def waiting(self) -> Generator[None]:
        """A block in which this process may wait for the others.

        Raises:
            ProcessLostError: one of them failed or is lost.
        """
        if self.failure:
            raise ProcessLostError(self.failure)
        if not self._waits:
            self._waits_since = time.monotonic()
        self._waits += 1
        try:
            yield
        except RuntimeError as error:
            if not _is_lost_connection(error):
                raise
            raise ProcessLostError(self._cause()) from error
        finally:
            self._waits -= 1

    def _cause(self) -> str:
        """Why a connection is closed: what its process reported, or else which one is silent."""
        begin = time.monotonic()
        patience = _PATIENCE * self.beat * (2 if self.rank else 1)  # the main process knows more
        while not self.failure and time.monotonic() < begin + patience:
            time.sleep(self.beat / 4)
        if not self.failure:
            now = time.monotonic()
            silent = [
                self._name(rank)
                for rank, (sign, since) in self._signs.items()
                if sign != _IDLE and now - since > _SILENT * self.beat
            ]
            lost = " and ".join(silent) or "the connection to another process"
            self._fail(f"lost {lost}: killed, or its machine or network failed")
        return self.failure

    def _fail(self, text: str) -> None:
        """Ends all processes, or this one if the store does not answer."""
        is_heard = time.monotonic() - self._heard < _SILENT * self.beat
        with contextlib.suppress(RuntimeError):
            if is_heard:
                self._report(text)
        self.failure = self.failure or text

    def _exchange(self) -> None:
        """Shows that this process lives, and reads what the others report."""
        while not self._left.wait(self.beat) and not self.failure:
            try:
                self._sign(self._next_sign())
                self._look()
            except RuntimeError:
                if not self._left.is_set():
                    self.failure = self.failure or (
                        f"lost {self._name(0)}: killed, or its machine or network failed"
                    )
                return
            self._heard = time.monotonic()

    def _guard(self) -> None:
        """Notices a store that does not answer, and ends a process that waits in vain."""
        before = time.monotonic()
        while not self._left.wait(self.beat):
            now = time.monotonic()
            if now - before > self.lost_after / 2:
                self._heard = now  # this process itself stood still
            before = now

            if not self.failure and now - self._heard > self.lost_after:
                self.failure = self._silence(0)
            if self.failure and self._waits:
                self._end_if_stuck()

    def _look(self) -> None:
        """Reads what the others report."""
        if self._store.check([_FAILURE]):
            self.failure = self._store.get(_FAILURE).decode()
            return
        for rank in self._watched:
            if not self._store.check([f"sign {rank}"]):
                continue  # it has not begun
            sign = self._store.get(f"sign {rank}").decode()
            now = time.monotonic()
            if rank not in self._signs or sign != self._signs[rank][0]:
                self._signs[rank] = (sign, now)
            elif sign != _IDLE and now - self._signs[rank][1] > self.lost_after:
                self._report(self._silence(rank))
                return

    def _report(self, text: str) -> None:
        """Makes `text` the failure of all processes, unless there is one."""
        self.failure = self._store.compare_set(_FAILURE, "", text).decode()

    def _end_if_stuck(self) -> None:
        """Ends this process if it still waits for the others some time after a failure."""
        since = self._waits_since
        if self._left.wait(_GRACE * self.beat):
            return
        if self._waits and self._waits_since == since:
            print(f"Error: {self.failure}. {self.what_is_safe()}", file=sys.stderr, flush=True)
            os._exit(_EXIT_STATUS)

    def _silence(self, rank: int) -> str:
        return (
            f"lost {self._name(rank)}: no sign of life for {self.lost_after:g} s; it hangs, or its "
            "machine or network failed"
        )

    def _next_sign(self) -> str:
        self._count += 1
        return json.dumps([self._count, socket.gethostname(), os.getpid()])

    def _sign(self, text: str) -> None:
        self._store.set(f"sign {self.rank}", text)

    def _name(self, rank: int) -> str:
        """The process and, where it is known, its machine."""
        host = socket.gethostname() if rank == self.rank else ""
        sign = self._signs.get(rank, (_IDLE, 0.0))[0]
        if sign != _IDLE:
            _, host, _ = json.loads(sign)
        return f"process {rank} of {self.world}{f' on {host}' if host else ''}"


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective operation failed, and not a computation between two of them."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
