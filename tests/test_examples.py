"""The examples in the docstrings of the public names and of their methods run, each in an empty folder."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest

import maskrcnn as mr
from maskrcnn.formats import all_formats

# Plain records, exceptions and tables of settings need no example.
RECORDS = (
    "__version__",
    "ActiveRun",
    "Annotation",
    "AugmentConfig",
    "AugmentedView",
    "Batch",
    "BoxHeadConfig",
    "BoxMaskConfig",
    "Category",
    "CheckReport",
    "ConversionReport",
    "DataError",
    "DataWarning",
    "DatasetSummary",
    "Detections",
    "DownloadError",
    "Evaluation",
    "ExportMismatchError",
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


def documented(name: str) -> str:
    """The docstring of a public name, or of a method or property written as Class.method."""
    owner, _, member = name.partition(".")
    thing = getattr(mr, owner)
    return inspect.getdoc(inspect.getattr_static(thing, member) if member else thing) or ""


def examples(name: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(documented(name))


def members(name: str) -> list[str]:
    """The public methods and properties that a public class defines."""
    thing = getattr(mr, name)
    own = vars(thing) if inspect.isclass(thing) else {}
    kinds = (property, classmethod, staticmethod)
    return [
        f"{name}.{member}"
        for member, value in own.items()
        if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds))
    ]


PUBLIC = [name for name in mr.__all__ if name != "__version__"]
METHODS = [method for name in PUBLIC for method in members(name)]
WITH_EXAMPLES = [name for name in (*PUBLIC, *METHODS) if examples(name)]


def test_every_public_function_and_class_has_an_example() -> None:
    without = set(mr.__all__) - set(WITH_EXAMPLES)
    assert without <= set(RECORDS)
    assert set(RECORDS) <= set(mr.__all__)


def test_every_method_of_instances_has_an_example() -> None:
    assert {name for name in METHODS if name.startswith("Instances.")} <= {
        *WITH_EXAMPLES,
        "Instances.image",
    }


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_example_of_a_public_name_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built_in = [*all_formats.FORMATS]
    test = doctest.DocTest(examples(name), {}, name, None, None, documented(name))
    printed: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    result = runner.run(test, out=printed.append)
    all_formats.FORMATS[:] = built_in
    assert result.attempted
    assert not result.failed, "".join(printed)
