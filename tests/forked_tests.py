"""Runs the tests in several processes: `pytest --processes 4`, or `auto` for one per core, at most 16.

They are forks of a process that has imported everything and collected the tests. A process that
starts anew, as each of pytest-xdist's does, takes ten seconds of processor time to get there.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

MOST_PROCESSES = 16
FORKS = "start_ranks"  # what modules import whose tests fork processes that train


def number_of_processes(word: str) -> int:
    """What `--processes` asks for; 0, which is pytest's own loop, where the system cannot fork."""
    if not hasattr(os, "fork"):
        return 0
    if word != "auto":
        return int(word)
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(cores, MOST_PROCESSES)


class Plan:
    """The tests that are left, in groups for one process: each file, and the files with a dear fixture.

    Args:
        items: the tests.
        dear: name of a fixture that takes seconds to make in each process that uses it.
    """

    def __init__(self, items: Sequence[pytest.Item], dear: str) -> None:
        with_fixture = {item.path for item in items if dear in item.fixturenames}
        groups: dict[Path | str, deque[int]] = {}
        for index, item in enumerate(items):
            key = dear if item.path in with_fixture else item.path
            groups.setdefault(key, deque()).append(index)
        # Those that fork come first: a process that has computed gradients on another device than the
        # CPU, if only on "meta", has forks that cannot compute any.
        forking = {item.path for item in items if hasattr(getattr(item, "module", None), FORKS)}
        in_order = sorted(groups.items(), key=lambda group: group[0] not in forking)
        self._groups = deque(tests for _, tests in in_order)  # that no process has begun
        self._begun: dict[int, deque[int]] = {}  # by the number of the process

    def take(self, process: int) -> int | None:
        """The index of the next test for a process; None if it can end."""
        own = self._begun.setdefault(process, deque())
        if not own:
            own.extend(self._more())
        return own.popleft() if own else None

    def _more(self) -> Iterable[int]:
        """The next group, or half of what another process has before it."""
        if self._groups:
            return self._groups.popleft()
        longest = max(self._begun.values(), key=len)
        return reversed([longest.pop() for _ in range(len(longest) // 2)])


class Calls:
    """The calls of pytest's hooks in a forked process, for its parent to repeat."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.made: list[tuple[str, dict[str, Any]]] = []

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self.made.append(("pytest_runtest_logstart", {"nodeid": nodeid, "location": location}))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        hook = self.config.hook
        data = hook.pytest_report_to_serializable(config=self.config, report=report)
        self.made.append(("pytest_runtest_logreport", {"report": data}))

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        self.made.append(("pytest_runtest_logfinish", {"nodeid": nodeid, "location": location}))

    def pytest_warning_recorded(
        self, warning_message: Any, when: str, nodeid: str, location: Any
    ) -> None:
        warning_message.source = None  # an object of this process
        words = {"warning_message": warning_message, "when": when}
        words |= {"nodeid": nodeid, "location": location}
        self.made.append(("pytest_warning_recorded", words))


def repeat(config: pytest.Config, calls: list[tuple[str, dict[str, Any]]]) -> None:
    """Calls pytest's hooks as a forked process has done."""
    for name, words in calls:
        if data := words.get("report"):
            report = config.hook.pytest_report_from_serializable(config=config, data=data)
            words = {"report": report}
        getattr(config.hook, name)(**words)


def crash(session: pytest.Session, index: int, status: int) -> list[tuple[str, dict[str, Any]]]:
    """The calls of hooks for a test with which its process has ended."""
    item = session.items[index]
    ended = f"signal {-status}" if status < 0 else f"status {status}"
    report = pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=f"the process ended with {ended} while it ran this test",
        when="call",
    )
    calls = Calls(session.config)
    calls.pytest_runtest_logstart(item.nodeid, item.location)
    calls.pytest_runtest_logreport(report)
    calls.pytest_runtest_logfinish(item.nodeid, item.location)
    return calls.made


def run_tests(session: pytest.Session, connection: Connection) -> None:
    """In a forked process: runs the tests whose indexes arrive, and sends the calls of hooks."""
    config = session.config
    manager = config.pluginmanager
    calls = Calls(config)
    manager.register(calls)

    # What tests print goes to files of this process, not to those of its parent.
    capture = manager.get_plugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()

    # The parent prints what this process would.
    with open(os.devnull, "w") as nowhere:
        manager.get_plugin("terminalreporter")._tw._file = nowhere
        index = connection.recv()
        while index is not None:
            following = connection.recv()
            next_item = None if following is None else session.items[following]
            item = session.items[index]
            config.hook.pytest_runtest_protocol(item=item, nextitem=next_item)
            connection.send(calls.made)
            calls.made = []
            index = following


class Worker:
    """A forked process. It knows the test after the one it runs: what both need stays."""

    def __init__(self, session: pytest.Session, number: int, plan: Plan, beside: list[Worker]):
        self.session = session
        self.number = number
        self.plan = plan
        self.beside = beside
        self._start(plan.take(number))

    def _start(self, first: int | None) -> None:
        """Forks, and sends the index of the first test and of the one after it, or None."""
        self.given = [first, self.plan.take(self.number)]
        self.connection, theirs = Pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns of threads: those of libraries, which wait for work.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process = os.fork()
        if self.process == 0:
            # They tell of the parent's end, which is when nobody else holds its side of them.
            for worker in {self, *self.beside}:
                worker.connection.close()
            _run_and_end(self.session, theirs)

        theirs.close()
        self.connection.send(first)
        if first is not None:
            self.connection.send(self.given[1])

    def read(self) -> bool:
        """Reports the test that has ended, and gives one more; False after the end of the process."""
        try:
            calls = self.connection.recv()
        except EOFError:
            return self._go_on_after_end()

        repeat(self.session.config, calls)
        self.given = [self.given[1], self.plan.take(self.number)]
        if self.given[0] is not None:
            self.connection.send(self.given[1])
        return True

    def _go_on_after_end(self) -> bool:
        """Waits for the process. The test that it was running has failed; a new process runs the rest."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        self.connection.close()
        running, following = self.given
        if running is None:
            return False

        repeat(self.session.config, crash(self.session, running, status))
        self._start(following)
        return True

    def interrupt(self) -> None:
        """Ends the process as Ctrl-C does, whatever it runs."""
        self.connection.close()
        os.kill(self.process, signal.SIGINT)
        os.waitpid(self.process, 0)


def _run_and_end(session: pytest.Session, connection: Connection) -> None:
    """Runs the tests in the forked process, which then ends without what Python does at its end."""
    status = 1
    try:
        try:
            run_tests(session, connection)
        finally:
            session._setupstate.teardown_exact(None)  # what fixtures of the session have started
        status = 0
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        pass  # the parent reports it, or is gone
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class ForkedTests:
    """The plugin: it takes the place of pytest's own loop over the tests.

    Args:
        processes: how many run the tests.
        dear: name of a fixture that as few of them as possible should make.
    """

    def __init__(self, processes: int, dear: str = "") -> None:
        self.processes = processes
        self.dear = dear

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed or session.config.option.collectonly:
            return None  # pytest's own loop handles it

        plan = Plan(session.items, self.dear)
        workers: list[Worker] = []
        try:
            for number in range(min(self.processes, len(session.items))):
                workers.append(Worker(session, number, plan, workers))
            while workers:
                self._read(session, workers)
        finally:
            for worker in workers:
                worker.interrupt()
        return True

    def _read(self, session: pytest.Session, workers: list[Worker]) -> None:
        """Reads what has arrived."""
        ready = wait([worker.connection for worker in workers])
        for worker in [worker for worker in workers if worker.connection in ready]:
            if not worker.read():
                workers.remove(worker)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
