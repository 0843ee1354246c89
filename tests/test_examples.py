"""The examples in the docstrings of the public names run, each in an empty folder."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest

import maskrcnn as mr

# Plain records, exceptions and tables of settings need no example.
RECORDS = (
    "__version__",
    "ActiveRun",
    "Annotation",
    "AugmentConfig",
    "AugmentedView",
    "Batch",
    "BoxHeadConfig",
    "Category",
    "CheckReport",
    "DataError",
    "DataWarning",
    "Detections",
    "DownloadError",
    "Evaluation",
    "ImageError",
    "InputConfig",
    "Interrupted",
    "KeypointHeadConfig",
    "MLflowLog",
    "MaskHeadConfig",
    "MatchedRoIs",
    "ModelConfig",
    "NeckConfig",
    "NonFiniteLossError",
    "Proposals",
    "RPNConfig",
    "Ranking",
    "Recipe",
    "Record",
    "RoIConfig",
    "Run",
    "TrackioLog",
    "TrainConfig",
    "TrainingPlan",
    "TrunkConfig",
    "Truth",
    "UnlabeledConfig",
    "WandbLog",
    "WeightsError",
    "WriteError",
)


def examples(name: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(getattr(mr, name)) or "")


WITH_EXAMPLES = [name for name in mr.__all__ if name != "__version__" and examples(name)]


def test_every_public_function_and_class_has_an_example() -> None:
    without = set(mr.__all__) - set(WITH_EXAMPLES)
    assert without <= set(RECORDS)
    assert set(RECORDS) <= set(mr.__all__)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_example_of_a_public_name_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTest(examples(name), {}, name, None, None, inspect.getdoc(getattr(mr, name)))
    printed: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    result = runner.run(test, out=printed.append)
    assert result.attempted
    assert not result.failed, "".join(printed)
