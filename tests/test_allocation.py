from __future__ import annotations

import platform
import sys

import pytest
from fresh_process import FreshProcess

# Runs in a new process, because it changes the whole process. Prints how many new pages each of ten tensors of 64 MB took, by default and with memory kept.
SCRIPT = """
import resource, torch
from maskrcnn.runtime import keep_memory

def new_pages() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**24).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(*(new_pages() for _ in range(10)))
assert keep_memory.keep_memory()
print(*(new_pages() for _ in range(10)))

def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

kept = resident()
keep_memory.return_unused_memory()
print(kept - resident())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the memory of tensors is kept with glibc only"
)
def test_kept_memory_is_reused_and_returned_on_request(fresh_process: FreshProcess) -> None:
    done = fresh_process.call("fresh_process:run_source", SCRIPT)
    assert done.status == 0, done.err
    lines = [[int(word) for word in line.split()] for line in done.out.splitlines()]
    default, kept, (returned,) = lines
    assert min(default) > 1000, "or there would be nothing to keep"
    assert max(kept[-3:]) < 100
    assert returned > 60e6, "the memory of the last tensor"


def test_nothing_is_done_without_mallopt_or_linux(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from maskrcnn.runtime.keep_memory import keep_memory

    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not keep_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_memory()
