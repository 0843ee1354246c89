from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from forked_tests import ForkedTests, number_of_processes
from fresh_process import FreshProcess
from processor_time import ProcessorTime

if TYPE_CHECKING:
    import numpy as np
    from exported_model import Exported

# `make test` runs one process per core. Two threads that wait for each other on one core take four times the processor time.
# The programs that tests start inherit the variables. A test that needs several threads sets them.
os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}

# Whether there is a GPU is asked of the driver's library: CUDA does not work in forks of a process that has called it.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

# All keep their bytecode, as an installed package does, and pytest that of the tests: otherwise each process would compile everything again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def prepare() -> None:
    """Imports the libraries, and makes the package check its signatures."""
    # The hook has a bytecode cache of its own, also for what a checked module imports. Libraries that are
    # imported before it come from their usual cache. Compiling them takes four seconds per process.
    import beartype  # noqa: F401
    import timm  # noqa: F401
    import torch
    import torch.distributed.tensor
    import torch.fx.experimental.symbolic_shapes
    import torchvision  # noqa: F401
    from hypothesis import settings
    from shape_checks import check_signatures

    # The shapes and types in the signatures of everything that handles tensors are checked in the tests, and only here.
    check_signatures("maskrcnn.model", "maskrcnn.ops", "maskrcnn.structures", "maskrcnn.preprocess")
    torch.set_num_threads(1)

    # The same generated examples in every run, so that a failure is caused by a change. To look for more: pytest --hypothesis-profile=default
    settings.register_profile("same examples", derandomize=True)
    settings.load_profile("same examples")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--processes",
        type=number_of_processes,
        default=0,
        help="run the tests in this many processes; auto: one per core, at most 16",
    )
    parser.addoption(
        "--processor-time",
        action="store_true",
        help="print the processor time of each capability beside its allowance",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--processor-time"):
        config.pluginmanager.register(ProcessorTime())
    if processes := config.getoption("--processes"):
        config.pluginmanager.register(ForkedTests(processes, dear="fresh_process"))
    prepare()


def pytest_collection_finish() -> None:
    """Keeps the million objects of the libraries and of the collected tests out of garbage collection.

    Python walks all of them whenever a quarter more were made: a fifth of the suite's time.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and reference outputs next to the checkout; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(
            f"no folder {folder.name}/ beside the checkout: real data and reference outputs are not part of the project"
        )
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A joint model with real detections, and its exported file; needs the extra `onnx`."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from exported_model import export_once

    return export_once(tmp_path_factory)


@pytest.fixture(scope="session")
def fresh_process() -> Iterator[FreshProcess]:
    """Runs functions in new processes, each forked from one that has imported everything once."""
    process = FreshProcess()
    yield process
    process.close()


@pytest.fixture
def twelve_bits() -> np.ndarray:
    """Random 12-bit color [13, 17, 3] as uint16."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 4096, (13, 17, 3), dtype=np.uint16)
