"""Several processes run the tests as one does. pytest itself runs small files of tests for this."""

from __future__ import annotations

import inspect
import os
from types import SimpleNamespace
from typing import Any

import pytest
from forked_tests import ForkedTests, Plan, number_of_processes

pytest_plugins = ["pytester"]

SHARED = """
    import os, pytest

    @pytest.fixture(scope="module", autouse=True)
    def dear():
        with open("made", "a") as file:
            file.write(f"{os.getpid()}\\n")

    @pytest.mark.parametrize("number", range(3))
    def test_of_several(number):
        print("printed", number)
        assert number != 1, "one is wrong"
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> Any:
    """Runs files of tests in two processes; what pytest printed and counted."""

    # To show a failure, each process would look up the files of all imported modules.
    inspect.getmodule(inspect.currentframe())

    def run(*words: str, **files: str) -> pytest.RunResult:
        pytester.makepyfile(**files)
        return pytester.runpytest_inprocess(
            "-p", "no:cacheprovider", *words, plugins=[ForkedTests(2)]
        )

    return run


def test_reports_are_those_of_one_process(run: Any, pytester: pytest.Pytester) -> None:
    skipped = "import pytest\n\ndef test_skipped():\n    pytest.skip('no reason')\n"
    wrong = "import pytest\n\n@pytest.fixture\ndef wrong():\n    yield\n    assert False, 'in the end'\n\ndef test_wrong(wrong):\n    pass\n"
    done = run("-rs", test_a=SHARED, test_b=skipped, test_c=wrong)
    done.assert_outcomes(passed=3, failed=1, skipped=1, errors=1)
    done.stdout.fnmatch_lines(["*AssertionError: one is wrong*", "printed 1", "*no reason*"])
    done.stdout.no_fnmatch_line("printed 0")

    # Neither the process that prints nor more than one of the others runs the tests of a file.
    made = (pytester.path / "made").read_text().split()
    assert len(made) == 1
    assert int(made[0]) != os.getpid()


def test_processes_run_at_the_same_time(run: Any) -> None:
    waits = """
        import time
        from pathlib import Path

        def test_waits_for_the_other():
            Path({own!r}).touch()
            for _ in range(1000):
                if Path({other!r}).exists():
                    return
                time.sleep(0.01)
            raise AssertionError("the other has not begun")

        def test_after():
            pass
    """
    files = {"test_a": waits.format(own="a", other="b"), "test_b": waits.format(own="b", other="a")}
    run(**files).assert_outcomes(passed=4)


def test_a_process_that_dies_fails_its_test_only(run: Any) -> None:
    dies = "import os, signal\n\ndef test_before():\n    pass\n\ndef test_dies():\n    os.kill(os.getpid(), signal.SIGKILL)\n\ndef test_after():\n    pass\n"
    done = run(test_a=dies, test_b="def test_other():\n    pass\n")
    done.assert_outcomes(passed=3, failed=1)
    done.stdout.fnmatch_lines(["*the process ended with signal 9 while it ran this test*"])


def test_the_first_failure_ends_all_if_asked_for(run: Any, pytester: pytest.Pytester) -> None:
    waits = """
        import time, pytest
        from pathlib import Path

        @pytest.fixture(scope="session")
        def started():
            Path("started").touch()
            yield
            Path("started").rename("ended")

        def test_waits(started):
            time.sleep(100)
    """
    fails = """
        import time
        from pathlib import Path

        def test_fails():
            while not Path("started").exists():
                time.sleep(0.01)
            assert False

        def test_after():
            pass
    """
    done = run("-x", test_a=fails, test_b=waits)
    done.assert_outcomes(failed=1)
    assert (pytester.path / "ended").exists()
    done.stdout.fnmatch_lines(["*stopping after 1 failures*"])


def test_a_file_that_cannot_be_imported_is_reported_once(run: Any) -> None:
    done = run(test_a="import no_such_module\n", test_b=SHARED)
    done.assert_outcomes(errors=1)


def items(files: str, dear: str = "") -> list[Any]:
    """A test for each letter, which is its file. Those in `dear` use a dear fixture."""
    return [SimpleNamespace(path=file, fixturenames=["dear"] * (file in dear)) for file in files]


def test_files_with_a_dear_fixture_go_to_one_process() -> None:
    plan = Plan(items("aabcdd", dear="ac"), "dear")
    assert [plan.take(0) for _ in range(3)] == [0, 1, 3]
    assert [plan.take(1) for _ in range(3)] == [2, 4, 5]
    assert plan.take(0) is None


def test_a_process_takes_files_and_then_half_of_what_another_has_left() -> None:
    plan = Plan(items("aabbbbbbb"), "dear")
    assert [plan.take(0), plan.take(1)] == [0, 2]
    assert [plan.take(0) for _ in range(4)] == [1, 6, 7, 8]
    assert [plan.take(1) for _ in range(4)] == [3, 4, 5, None]
    assert plan.take(0) is None


def test_files_that_fork_come_first() -> None:
    tests = items("aabc")
    tests[3].module = SimpleNamespace(start_ranks=None)
    plan = Plan(tests, "dear")
    assert [plan.take(0), plan.take(1)] == [3, 0]


def test_auto_is_a_process_per_core() -> None:
    assert 1 <= number_of_processes("auto") <= 16
    assert number_of_processes("3") == 3
