"""What the suite costs in processor time, by capability: `pytest --processor-time`, as `make test` runs it.

The time of a process that a test starts counts for the test during which it passes. Allowances are those of
issue 13, in seconds on two cores of an AMD EPYC: half of what the suite cost when it had the first
capability alone (346 and 354 s in two runs of commit eed9beb), and a fixed number of seconds for each
later one. Files that commit did not have, nor their promises, belong to a later one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest


class Capability(NamedTuple):
    """What some files of tests are about, and how many seconds they may take together."""

    name: str
    seconds: float
    files: tuple[str, ...]  # without "test_" and ".py"


CAPABILITIES = (
    Capability(
        "model, training, evaluation, formats, commands",
        173,
        (
            *("allocation", "annotations_coco_dataset", "annotations_merge"),
            *("annotations_problems", "annotations_split", "augmentation_copy_paste"),
            *("augmentation_geometry", "augmentation_loader"),
            *("augmentation_scale_jitter", "augmentation_training_set", "benchmarks"),
            *("benchmarks_small_data", "cli", "cli_precision", "contours", "crossings"),
            *("dataset_checks_check", "dataset_checks_fix", "dataset_checks_left_right"),
            *("dataset_checks_messy", "dataset_checks_page", "demo", "draw"),
            *("evaluation", "formats_convert", "formats_golden", "formats_messy_folders"),
            *("formats_messy_tools", "formats_round_trip", "images", "images_similarity"),
            *("instances", "layers", "layers_training", "memory", "model_async"),
            *("model_on_gpu", "model_partial", "model_parts", "model_roi_align"),
            *("model_whole", "package", "parity_detectron2", "parity_torchvision"),
            *("paste_masks", "prediction", "prediction_rank", "prediction_tta"),
            *("recipe_anchors", "recipe_choices", "recipe_memory", "rle", "scenes"),
            *("settings", "shipped", "training_checkpoint", "training_examples"),
            *("training_fit", "training_log", "training_optim", "training_resume"),
            *("training_sampler", "training_unlabeled", "weights_detectron2"),
            *("weights_download", "weights_load", "weights_pickles"),
            *("weights_pretrained", "weights_torchvision", "weights_transfer"),
        ),
    ),
    Capability(
        "documents, examples and language",
        40,
        ("docs", "examples", "page", "readme", "shape_checks", "typed_face", "words"),
    ),
    Capability(
        "other processors",
        20,
        ("forked_tests", "gpu", "keypoint_parity", "processor_time", "processors", "saved_before"),
    ),
    Capability(
        "other people's files",
        60,
        (
            *(
                "cases",
                "coco_as_people_have_it",
                "counted",
                "fix_properties",
                "formats_cvat_tracks",
            ),
            *("formats_exif", "formats_memory", "formats_other_tools", "formats_siblings"),
            *("formats_yolo", "identity", "identity_elsewhere", "image_depth"),
            *(
                "image_endings",
                "image_limits",
                "images_option",
                "predict_inputs",
                "remarks",
                "travel",
            ),
            "unlisted_images",
        ),
    ),
    Capability(
        "the first evening",
        60,
        (
            *("benchmarks_first_evening", "extending", "faults", "instances_json", "progress"),
            *("training_callbacks", "training_interruption", "training_trial"),
            "validation_batch",
        ),
    ),
    Capability(
        "less training data", 60, ("cut_out", "labeled_points", "masks_from_boxes", "weights_trunk")
    ),
    Capability(
        "exported files",
        300,
        (
            *("certificate", "close_calls", "error_text", "export", "export_formats"),
            *("export_input", "export_kinds", "export_pt2", "export_web", "proposal_flips"),
        ),
    ),
    Capability("kernels for a GPU", 60, ("kernels_on_nvidia",)),
    Capability(
        "service",
        60,
        ("service", "service_files", "service_limits", "service_page", "service_server"),
    ),
    Capability(
        "many machines",
        180,
        ("cluster", "cluster_model", "cluster_ray", "cluster_store", "training_processes"),
    ),
)

START = "start of the processes"
_BY_FILE = {
    f"test_{file}.py": capability for capability in CAPABILITIES for file in capability.files
}


def capability_of(file: str) -> Capability:
    """The capability that a file of tests, such as `test_rle.py`, belongs to.

    Raises:
        UsageError: The file is in none.
    """
    if file not in _BY_FILE:
        raise pytest.UsageError(
            f"tests/processor_time.py: expected a capability of {file}, got none"
        )
    return _BY_FILE[file]


def used() -> float:
    """Seconds of processor time that this process and all that it has started have taken."""
    times = os.times()
    ended = times.children_user + times.children_system
    return times.user + times.system + ended + sum(map(_seconds_of, _children(os.getpid())))


def _children(process: int) -> list[int]:
    """Processes that a process has started and not waited for; none where the system does not tell."""
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # a thread has ended meanwhile; the others have told theirs
            found += map(int, path.read_text().split())
    return found


def _seconds_of(process: int) -> float:
    """Processor time of a running process and of all that it has started."""
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
        return ticks / os.sysconf("SC_CLK_TCK") + sum(map(_seconds_of, _children(process)))
    return 0.0


class ProcessorTime:
    """Measures the tests; the report of a test carries its time to the process that prints."""

    def __init__(self) -> None:
        self.seconds = Counter[str]()  # by file; by START
        self.tests = Counter[str]()  # by the id of a test
        self._begun = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        before = used()
        report = yield
        if isinstance(collector, pytest.Module):
            capability_of(collector.path.name)
            self.seconds[collector.path.name] += used() - before
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self) -> None:
        self._begun = used()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "teardown":
            report.processor_seconds = used() - self._begun
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        seconds = getattr(report, "processor_seconds", 0.0)
        self.seconds[Path(report.location[0]).name] += seconds
        self.tests[report.nodeid] += seconds

    def pytest_sessionfinish(self) -> None:
        self.seconds[START] += used() - self.seconds.total()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("processor time")
        for line in table(self.seconds, self.tests):
            terminalreporter.write_line(line)


def table(seconds: Counter[str], tests: Counter[str]) -> list[str]:
    """Lines: each capability beside its allowance, then the dearest files and tests."""
    taken = Counter({capability.name: 0.0 for capability in CAPABILITIES})
    for file, value in seconds.items():
        # The processes start once for all; what that takes counts for the first capability.
        capability = CAPABILITIES[0] if file == START else capability_of(file)
        taken[capability.name] += value

    lines = [f"{'seconds':>8} {'allowed':>8}"]
    for name, allowed, _ in CAPABILITIES:
        mark = "  above the allowance" if taken[name] > allowed else ""
        lines.append(f"{taken[name]:8.1f} {allowed:8.0f}  {name}{mark}")
    allowed = sum(capability.seconds for capability in CAPABILITIES)
    lines.append(f"{taken.total():8.1f} {allowed:8.0f}  all")

    lines += [
        f"{value:8.1f}           {Path(name).stem}" for name, value in seconds.most_common(15)
    ]
    lines += [f"{value:8.1f}           {name}" for name, value in tests.most_common(15)]
    return lines
