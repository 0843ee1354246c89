from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# The shapes and types in the signatures of everything that handles tensors are checked in the tests, and only here.
install_import_hook(
    ["maskrcnn.model", "maskrcnn.ops", "maskrcnn.structures", "maskrcnn.preprocess"],
    "shape_checks.check",
)

torch.set_num_threads(2)

# The same drawn examples in every run, so that a red one is the doing of a change. To look for more: pytest --hypothesis-profile=default
settings.register_profile("same examples", derandomize=True)
settings.load_profile("same examples")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference outputs beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(
            f"no folder {folder.name}/ beside the checkout: real data and reference outputs are not part of the project"
        )
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For a network of eight channels, which has no work for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
