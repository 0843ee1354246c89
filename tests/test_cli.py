from __future__ import annotations

import io
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_config
from PIL import Image
from rich.console import Console

import maskrcnn as mr
from maskrcnn.cli import make_app, run
from maskrcnn.cli.train import Preset, seconds
from maskrcnn.formats.load_dataset import validation_split
from maskrcnn.runtime.interruption import Interrupted
from maskrcnn.settings import to_dict
from maskrcnn.synthetic.scenes import write_scenes
from maskrcnn.synthetic.shapes import CATEGORIES

COMMANDS = (
    "demo",
    "predict",
    "collect",
    "train",
    "evaluate",
    "export",
    "check",
    "rank",
    "serve",
    "convert",
    "weights",
)
FROZEN = Path(__file__).with_name("help")
PRESET = (
    "--no-recipe",
    "--model",
    "maskrcnn_r18_small",
)  # for tests of what a recipe does not change


def help_text(*words: str) -> str:
    """What `--help` says, without the parts that depend on the terminal and the version of Cyclopts: frames, breaks, types, the usage line."""
    console = Console(file=io.StringIO(), width=400, force_terminal=False)
    make_app().help_print([*words], console=console)
    lines = (
        re.sub(r"[│╭╮╰╯─]+", " ", line).strip() for line in console.file.getvalue().splitlines()
    )
    lines = (
        re.sub(r"(--[a-z-]+) (?:PATH|STR|INT|FLOAT|CHOICE)\b", r"\1", line)
        for line in lines
        if not line.startswith(("Usage:", "--help"))
    )
    return "\n".join(re.sub(r" {2,}", "  ", line) for line in lines if line) + "\n"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 4, seed=1, size=96)
    return folder


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    mr.save(mr.MaskRCNN.from_config(tiny_config(CATEGORIES)), path)
    return path


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces training and records its arguments."""
    calls: list[dict[str, Any]] = []

    def record(model: Any, data: Any, **settings: Any) -> None:
        calls.append({"model": model, "data": data, "validation": settings["val"], **settings})

    monkeypatch.setattr("maskrcnn.training.fit.train", record)
    return calls


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_equals_the_stored_text(command: str):
    """To change it on purpose: python tests/test_cli.py rewrites tests/help/."""
    assert help_text(*command.split()) == (FROZEN / f"{command or 'maskrcnn'}.txt").read_text()


def test_help_needs_half_a_second_and_no_torch():
    script = "import sys; from maskrcnn.cli import run; run(['--help']); print(sorted({'torch', 'numpy', 'PIL', 'timm'} & set(sys.modules)))"

    def seconds_of_a_run() -> tuple[float, str]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(
            resource.RUSAGE_CHILDREN
        )  # CPU time, which does not depend on the load of the machine
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout

    runs = [seconds_of_a_run() for _ in range(2)]
    assert runs[0][1].strip().endswith("[]")
    assert min(time for time, _ in runs) < 0.5


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trian", 'Did you mean "train"'),
        ("train --out x", "--data is missing. Annotations in any known format"),
        ("train {json} --out x", "--data is missing; did you mean --data {json}?"),
        ("train --data {json} --out", "--out: expected a value, got none. Folder of the run"),
        ("train --data {json} --out x --epochs 3", "settings are name=value: epochs=3"),
        ("train --data {json} --out x --minutes 3", "did you mean --max-time?"),
        ("train --data {json} --out x --memory lots", '--memory: expected a number, got "lots"'),
        ("evaluate {model} {json}", "--data is missing; did you mean --data {json}?"),
        ("evaluate --model {model} --data {json}", "write the model without an option"),
        ("evaluate {model} {json} --data {json}", "unexpected arguments: {json}"),
        ("predict {model}", "INPUTS is missing. Images, folders"),
        ("predict {model} x --out o --out p", "--out is given twice"),
        ("check", "DATA is missing. Annotation file"),
        ("train --data absent.json --out x", "absent.json"),
        ("train --data {json} --out x batchsize=4", "did you mean batch_size"),
        ("train --data {json} --out x model.box.max_detection=4", "did you mean max_detections"),
        ("train --data {json} --out x 7", "name=value"),
        ("train --data {json} --out x batch_size=two", "batch_size: expected int, got 'two'"),
        ("train --data {json} --out x --max-time 5d", "25m"),
        ("train --data {json} --out x --model resnet", "maskrcnn_r18_small"),
        ("train --data {json} --images absent --out x", "absent"),
        ("predict absent.safetensors {json} --out x", "absent.safetensors"),
        ("predict maskrcnn_r50_fpn_koko {images} --out x", "maskrcnn_r50_fpn_coco"),
        ("predict x {images} --out x --min-score 50", "expected 0 to 1"),
        ("predict {model} absent.jpg --out x", "absent.jpg"),
        ("predict {model} {images} --out x --device cuda:77", "cuda:77"),
        ("evaluate {model} --data {images}/00001.png", "no annotations of a known format"),
        ("convert {json} --format voc", "OUT"),
        ("convert {json} x --format labelmee", "labelme"),
    ],
)
def test_a_users_error_is_one_message_and_status_2(
    words: str,
    expected: str,
    scenes: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    given = words.format(
        json=scenes / "annotations.json", images=scenes / "images", model=tiny_model
    ).split()
    assert run(given) == 2
    message = capsys.readouterr().err
    assert message.startswith("Error: ")
    assert expected.replace("{json}", str(scenes / "annotations.json")) in message
    assert "Traceback" not in message


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_debug_shows_where_an_error_arose(how: str, scenes: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["train", "--data", str(scenes / "annotations.json"), "--out", "x", "nonsense"]
    if how == "environment":
        monkeypatch.setenv("MASKRCNN_DEBUG", "1")
    with pytest.raises(ValueError, match="name=value"):
        run([*words, "--debug"] if how == "flag" else words)


def test_train_passes_on_every_setting(
    scenes: Path,
    tmp_path: Path,
    fit: list,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("maskrcnn.training.forecast.step_seconds", lambda *_, **__: 1.0)
    data, config = str(scenes / "annotations.json"), tmp_path / "run.toml"
    config.write_text(
        "epochs = 7\nbatch_size = 2\n[augment]\nrotation = 15\n[model.input]\nscale = 2\n"
    )
    words = [
        "train",
        "--data",
        data,
        "--images",
        str(scenes / "images"),
        "--val",
        data,
        "--out",
        str(tmp_path / "run"),
        "--config",
        str(config),
    ]
    assert (
        run(
            [
                *words,
                "--max-time",
                "1.5m",
                "--anyway",
                "batch_size=16",
                "model.box.max_detections=33",
                "augment.crop=96",
                "--resume",
                "model.mask=none",
            ]
        )
        == 0
    )
    (given,) = fit
    settings = given["config"]
    assert (
        settings.epochs,
        settings.batch_size,
        settings.augment.rotation,
        settings.augment.crop,
        settings.max_time,
    ) == (7.0, 16, 15.0, 96, 90.0)
    assert given["resume"] is True
    assert (given["model"].input.scale, given["model"].box.max_detections, given["model"].mask) == (
        2.0,
        33,
        None,
    )
    assert [c.name for c in given["model"].categories] == [c.name for c in CATEGORIES]
    assert len(given["validation"]) == len(given["data"]) == 4
    printed = capsys.readouterr().out
    for part in (
        "4 images",
        "ball, star, ring, figure",
        "1.5 min, 16 images per step",
        "boxes, keypoints",
        "maskrcnn_r18_small",
    ):
        assert part in printed


def test_settings_that_must_agree_can_be_changed_together(scenes: Path, fit: list):
    words = [
        "train",
        "--data",
        str(scenes / "annotations.json"),
        "--images",
        str(scenes / "images"),
        "--out",
        "x",
    ]
    assert run([*words, "model.neck.levels=[2,3]", "model.rpn.sizes=[[16],[32],[64]]"]) == 0
    assert fit[0]["model"].neck.levels == (2, 3)
    assert run([*words, "model.neck.levels=[2,3]"]) == 2


def test_train_from_a_model_takes_its_architecture_and_names_it(
    scenes: Path, tiny_model: Path, fit: list, capsys: pytest.CaptureFixture
):
    words = [
        "train",
        "--data",
        str(scenes / "annotations.json"),
        "--images",
        str(scenes / "images"),
        "--no-val",
        "--out",
        "x",
    ]
    assert run([*words, "--pretrained", str(tiny_model), "model.box.max_detections=77"]) == 0
    assert fit[0]["pretrained"] == str(tiny_model)
    assert fit[0]["model"].rpn == replace(
        mr.load(tiny_model).config.rpn, pre_nms_test=500, post_nms_test=500
    )
    assert fit[0]["model"].box.max_detections == 77
    assert f"starts from {tiny_model}" in capsys.readouterr().out


def test_without_validation_data_a_part_is_split_off_and_reported(
    scenes: Path, fit: list, capsys: pytest.CaptureFixture
):
    words = [
        "train",
        "--data",
        str(scenes / "annotations.json"),
        "--images",
        str(scenes / "images"),
        "--out",
        "x",
        *PRESET,
    ]
    assert run(words) == run([*words, "--no-val"]) == 0
    parted, whole = fit
    assert (len(parted["data"]), len(parted["validation"])) == (3, 1)
    assert {r.image_id for r in parted["data"]}.isdisjoint(
        {r.image_id for r in parted["validation"]}
    )
    assert (len(whole["data"]), whole["validation"]) == (4, None)
    assert "1 image split off, 15% by seed 0" in capsys.readouterr().out


def test_training_validates_on_the_split_val_of_the_data(
    scenes: Path, tmp_path: Path, fit: list, capsys: pytest.CaptureFixture
):
    content = json.loads((scenes / "annotations.json").read_text())
    validation_ids = {image["id"] for image in content["images"][:1]}
    for name, wanted in (
        ("train", {image["id"] for image in content["images"]} - validation_ids),
        ("val", validation_ids),
        ("test", validation_ids),
    ):
        images = [i for i in content["images"] if i["id"] in wanted]
        annotations = [a for a in content["annotations"] if a["image_id"] in wanted]
        (tmp_path / f"instances_{name}.json").write_text(
            json.dumps(content | {"images": images, "annotations": annotations})
        )
    words = ["--images", str(scenes / "images"), "--out", "x", *PRESET]
    for data in (str(tmp_path), f"{tmp_path}:instances_train"):
        assert run(["train", "--data", data, *words]) == 0
        assert (len(fit[-1]["data"]), {r.image_id for r in fit[-1]["validation"]}) == (
            3,
            validation_ids,
        )
        assert "instances_val" in capsys.readouterr().out
    assert run(["train", "--data", str(tmp_path), "--no-val", *words]) == 0
    assert (len(fit[-1]["data"]), fit[-1]["validation"]) == (3, None)
    assert run(["train", "--data", f"{tmp_path}:instances_val", "--no-val", *words]) == 0
    assert validation_split(f"{tmp_path}:instances_val") is None


@pytest.mark.parametrize(
    ("names", "read", "judged_by"),
    [
        (
            ["instances_train", "instances_val", "person_train", "person_val"],
            "person_train",
            "person_val",
        ),
        (["train", "trainval", "val"], "", "val"),
        (["train", "trainval", "val"], "trainval", None),
        (["trainval", "val"], "", None),
        (["a_train", "b_val", "c_val"], "a_train", None),
        (["val"], "", None),
    ],
)
def test_the_validation_split_is_the_twin_of_the_one_read(
    tmp_path: Path, names: list[str], read: str, judged_by: str | None
):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    for name in names:
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert validation_split(f"{tmp_path}:{read}" if read else tmp_path) == (
        judged_by and f"{tmp_path}:{judged_by}"
    )


def test_masks_in_another_folder_than_their_images_can_be_trained_on(
    scenes: Path, tmp_path: Path, fit: list
):
    mr.convert_annotations(
        scenes / "annotations.json", tmp_path / "png", "png", images=scenes / "images"
    )
    words = [
        "--data",
        str(tmp_path / "png" / "masks"),
        "--images",
        str(scenes / "images"),
        "--out",
        "x",
        *PRESET,
    ]
    assert run(["train", *words]) == 0
    assert (len(fit[-1]["data"]), len(fit[-1]["validation"])) == (3, 1)


def test_no_recipe_uses_the_unchanged_preset_and_defaults(scenes: Path, fit: list):
    words = [
        "train",
        "--data",
        str(scenes / "annotations.json"),
        "--images",
        str(scenes / "images"),
        "--no-val",
        "--out",
        "x",
        "--no-recipe",
    ]
    assert run(words) == 2, "which model?"
    assert run([*words, "--model", "maskrcnn_r18_small", "batch_size=2"]) == 0
    assert fit[0]["config"] == mr.TrainConfig(batch_size=2)
    assert fit[0]["model"] == mr.maskrcnn_r18_small(fit[0]["data"].categories)


def test_a_resumed_training_keeps_its_settings_whatever_would_be_chosen_now(
    scenes: Path, tmp_path: Path, fit: list
):
    """The memory and data that the recipe depends on may have changed since."""
    words = [
        "train",
        "--data",
        str(scenes / "annotations.json"),
        "--images",
        str(scenes / "images"),
        "--no-val",
        "--out",
        str(tmp_path),
    ]
    model = mr.maskrcnn_r18_small(CATEGORIES)
    stored = {
        "model": to_dict(replace(model, input=replace(model.input, scale=1.75))),
        "train": to_dict(mr.TrainConfig(learning_rate=0.125)),
    }
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert run([*words, "--resume", "batch_size=3"]) == 0
    assert (
        fit[0]["model"].input.scale,
        fit[0]["config"].learning_rate,
        fit[0]["config"].batch_size,
    ) == (1.75, 0.125, 3)


def test_only_one_of_several_processes_prints_the_plan(
    scenes: Path,
    tmp_path: Path,
    fit: list,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    from maskrcnn.training.processes import Processes

    words = [
        "train",
        "--data",
        str(scenes / "annotations.json"),
        "--images",
        str(scenes / "images"),
        "--no-val",
        "--out",
        str(tmp_path / "run"),
    ]
    sent: list[Any] = []

    def from_main(processes: Processes, value: Any) -> Any:
        """The second process gets what the first one sent, without a process group."""
        if processes.main:
            sent.append(value)
        return value if processes.main else sent.pop(0)

    monkeypatch.setattr(Processes, "from_main", from_main)
    for rank, times in ((0, 1), (1, 0)):
        monkeypatch.setattr(
            Processes, "start", lambda _=None, rank=rank: Processes(rank, 2, torch.device("cpu"))
        )
        assert run([*words, "--no-recipe", "--model", "maskrcnn_r18_small"]) == 0
        assert capsys.readouterr().out.count("run folder") == times
    assert len(fit) == 2


def test_an_unusable_output_folder_is_refused_before_the_data_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    for name, expected in (
        ("run", "already holds a run (config.json)"),
        ("run/config.json", "is a file"),
    ):
        assert (
            run(["train", "--data", str(tmp_path / "absent.json"), "--out", str(tmp_path / name)])
            == 2
        )
        assert expected in capsys.readouterr().err


def test_an_interrupted_training_prints_how_to_resume(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def interrupted(*_: Any, **__: Any) -> None:
        raise Interrupted("stopped after step 3", resumable=True)

    monkeypatch.setattr("maskrcnn.training.fit.train", interrupted)
    words = [
        "train",
        "--data",
        str(scenes / "annotations.json"),
        "--images",
        str(scenes / "images"),
        *PRESET,
        "--out",
        "my run",
    ]
    assert run(words) == 130
    told = capsys.readouterr().err
    assert "Interrupted: stopped after step 3.\nContinue with:\n  maskrcnn train" in told
    assert "--out 'my run' --resume" in told


def test_predict_continues_after_a_broken_file(
    scenes: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    image = scenes / "images" / "00001.png"
    assert (
        run(
            [
                "predict",
                str(tiny_model),
                str(image),
                str(broken),
                "--out",
                str(tmp_path / "found"),
                "--min-score",
                "0.05",
            ]
        )
        == 1
    )
    assert "broken.png" in capsys.readouterr().err
    results = json.loads((tmp_path / "found" / "results.json").read_text())
    assert {entry["file_name"] for entry in results} <= {"00001.png"}
    assert (tmp_path / "found" / "00001.png").is_file()


def test_overlays_have_the_size_of_the_image_unless_asked(
    scenes: Path, tiny_model: Path, tmp_path: Path
):
    image = scenes / "images" / "00001.png"
    with Image.open(image) as opened:
        own = opened.size
    factor = round(640 / max(own))
    assert factor > 1
    for flags, wanted in ([], own), (["--enlarge"], (factor * own[0], factor * own[1])):
        out = tmp_path / f"out{len(flags)}"
        assert run(["predict", str(tiny_model), str(image), "--out", str(out), *flags]) == 0
        with Image.open(out / image.name) as overlay:
            assert overlay.size == wanted


def test_predict_prints_a_long_path_unbroken(
    scenes: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "a long name of several words" / "and of several folders"
    assert (
        run(["predict", str(tiny_model), str(scenes / "images" / "00001.png"), "--out", str(out)])
        == 0
    )
    assert str(out / "results.json") in capsys.readouterr().out


def test_evaluate_writes_metrics_and_results_that_evaluate_to_the_same(
    scenes: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    words = ["--data", str(scenes / "annotations.json"), "--images", str(scenes / "images")]
    assert run(["evaluate", str(tiny_model), *words, "--out", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    assert "bbox" in printed
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    again = mr.evaluate(
        tmp_path / "report" / "results.json",
        scenes / "annotations.json",
        max_detections=metrics["max_detections"],
    )
    assert again.to_dict()["bbox"] == metrics["bbox"]


def test_weights_lists_the_catalog(capsys: pytest.CaptureFixture):
    assert run(["weights"]) == 0
    printed = capsys.readouterr().out
    assert "maskrcnn_r50_fpn_v2_coco" in printed
    assert "BSD-3-Clause" in printed


def test_every_preset_that_takes_categories_can_be_trained():
    from maskrcnn import presets

    assert all(callable(getattr(presets, name)) for name in Preset.__args__)


@pytest.mark.parametrize(
    ("text", "value"),
    [("90", 90), ("90s", 90), ("25m", 1500), ("25 min", 1500), ("1.5h", 5400), (".5h", 1800)],
)
def test_durations(text: str, value: float):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "0", "-5m", "5d", "m", "1h30m", "inf", "nan"])
def test_invalid_durations_are_refused(text: str):
    with pytest.raises(ValueError, match="expected a duration"):
        seconds(text)


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise")
@pytest.mark.parametrize("words", ["weights", "--help", "predict --help"])
def test_a_reader_that_closes_the_pipe_is_no_error(words: str):
    command = f"{shlex.quote(sys.executable)} -m maskrcnn {words}; echo status $? >&2"
    done = subprocess.run(
        ["bash", "-c", f"({command}) | true"], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "status 141"


@pytest.mark.skipif(os.name == "nt", reason="shells close otherwise")
def test_a_command_needs_no_output():
    subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -m maskrcnn weights >&-"], check=True
    )


def test_a_pipe_that_breaks_elsewhere_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def broken(*_: Any, **__: Any) -> None:
        raise BrokenPipeError(32, "Broken pipe of a worker")

    monkeypatch.setattr("maskrcnn.weights.catalog.table", broken)
    assert run(["weights"]) == 2
    assert "Broken pipe of a worker" in capfd.readouterr().err


if __name__ == "__main__":
    FROZEN.mkdir(exist_ok=True)
    for name in ("", *COMMANDS):
        (FROZEN / f"{name or 'maskrcnn'}.txt").write_text(help_text(*name.split()))
