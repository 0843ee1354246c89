from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from exported_model import Exported

# The shapes and types in the signatures of everything that handles tensors are checked in the tests, and only here.
install_import_hook(
    ["maskrcnn.model", "maskrcnn.ops", "maskrcnn.structures", "maskrcnn.preprocess"],
    "shape_checks.check",
)

# `make test` runs one process per core. Two threads that wait for each other on one core take four times the processor time.
# xdist's processes and the programs that tests start inherit the variables. A test that needs several threads sets them.
torch.set_num_threads(1)
os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}

# The same generated examples in every run, so that a failure is caused by a change. To look for more: pytest --hypothesis-profile=default
settings.register_profile("same examples", derandomize=True)
settings.load_profile("same examples")


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
