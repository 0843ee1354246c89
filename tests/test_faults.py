"""Full disks, and images that vanish or break during a run: what is said, and what is safe."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import training_run
from PIL import Image
from training_run import tiny_config, tiny_model

import maskrcnn as mr
from maskrcnn.augmentation.training_set import TrainingSet
from maskrcnn.runtime import atomic_files
from maskrcnn.runtime.atomic_files import replace_text, replacing, writing
from maskrcnn.training.checkpoint import read_checkpoint
from maskrcnn.training.fit import train
from maskrcnn.training.log import read_rows

# A full disk


@contextmanager
def limited_files(num_bytes: int) -> Generator[None]:
    """The system refuses to make any file longer: a real fault within a write."""
    resource = pytest.importorskip("resource", reason="this system has no limits on files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            r"no space left on the disk \(.* MB are",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), r"the disk quota is used up$"),
        (OSError(errno.EROFS, "Read-only file system"), r"the disk is read-only$"),
        (RuntimeError("I/O error: No space left (os error 28)"), r"no space left on the disk"),
        (RuntimeError("I/O error: disk full (os error 112)"), r"no space left on the disk"),
    ],
)
def test_a_disk_that_fails_is_named_with_the_path_and_the_old_file_stays(
    error: Exception, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(mr.WriteError, match=f"a.json: {message}"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_other_errors_of_a_write_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_text(tmp_path / "no/folder/a.json", "text")
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        print(1 / 0)


def test_a_file_that_the_system_cuts_off_is_a_write_error(tmp_path: Path) -> None:
    with limited_files(1000), pytest.raises(mr.WriteError, match=r"a.json: the file is too large"):
        replace_text(tmp_path / "a.json", "x" * 2000)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> mr.CocoDataset:
    return mr.CocoDataset(training_run.draw(tmp_path_factory.mktemp("data"), 4))


def go(data: mr.CocoDataset, out: Path, *callbacks: mr.Callback, **changes: Any) -> mr.Run:
    options = {name: changes.pop(name) for name in ("val", "resume") if name in changes}
    config = tiny_config(**{"steps": 4, "checkpoint_every": 1e9, "evaluate_every": 1.0, **changes})
    return train(
        tiny_model(data), data, config=config, out=out, device="cpu", callbacks=callbacks, **options
    )


def fill_disk(monkeypatch: pytest.MonkeyPatch, name: str, after: int) -> None:
    """From now on a file of this name can be written so many times, then the disk is full."""
    flush, written = atomic_files._flush, []

    def full(path: Path) -> None:
        written.append(path.name)
        if written.count(f".partial-{name}") > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path)

    monkeypatch.setattr(atomic_files, "_flush", full)


@pytest.mark.parametrize("name", ["checkpoint", "last", "best"])
def test_a_full_disk_ends_a_run_that_continues_where_it_was(
    data: mr.CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    go(data, tmp_path / "whole", val=data)
    with monkeypatch.context() as patch:
        fill_disk(patch, f"{name}.safetensors", after=2 * (name != "best"))
        message = (
            rf"run/{name}.safetensors: no space left .*\. The checkpoint of step \d in .*run is"
        )
        with pytest.raises(mr.WriteError, match=message):
            go(data, tmp_path / "run", val=data, steps=4, evaluate_every=0.5)
    state = read_checkpoint(tmp_path / "run/checkpoint.safetensors")[1]["state"]
    assert 1 <= state["step"] <= 2
    assert not list((tmp_path / "run").glob(".*"))
    go(data, tmp_path / "run", val=data, evaluate_every=0.5, resume=True)
    hashes = {
        training_run.weights_of(tmp_path / out / "last.safetensors") for out in ("run", "whole")
    }
    assert len(hashes) == 1


def test_metrics_on_a_full_disk_end_the_run_with_one_sentence(
    data: mr.CocoDataset, tmp_path: Path
) -> None:
    limit = ExitStack()

    class Limit(mr.Callback):
        def on_step(self, run: mr.ActiveRun, row: Any) -> None:
            if run.step == 2:
                size = (run.out / "metrics.csv").stat().st_size
                limit.enter_context(limited_files(size + 10))

    message = r"metrics.csv: the file is too large .*no checkpoint yet, so resume=True \(--resume\)"
    with limit, pytest.raises(mr.WriteError, match=message):
        go(data, tmp_path / "run", Limit(), steps=9)
    go(data, tmp_path / "run", steps=3, resume=True)
    assert [row["step"] for row in read_rows(tmp_path / "run/metrics.csv")] == [1, 2, 3]


class Drawn:
    """Three micrographs, and a model that detects something in each."""

    def __init__(self, folder: Path) -> None:
        from maskrcnn.synthetic.micrograph import draw_micrograph

        self.folder = folder / "images"
        self.folder.mkdir()
        for seed in range(3):
            image = Image.fromarray(draw_micrograph(seed=seed)[0]).crop((0, 0, 96, 96))
            image.save(self.folder / f"{seed}.png")
        self.predictor = mr.Predictor(mr.load("nuclei"), min_score=0.2)

    def predict(self, out: Path) -> mr.Summary:
        return mr.predict_files(self.predictor, [self.folder], out, progress=False)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return Drawn(tmp_path_factory.mktemp("drawn"))


def test_results_before_a_full_disk_or_an_interruption_are_kept(
    drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn.predict(tmp_path / "whole")
    expected = json.loads((tmp_path / "whole/results.json").read_text())
    assert {entry["file_name"] for entry in expected} == {"0.png", "1.png", "2.png"}

    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text("earlier")
    with monkeypatch.context() as patch:
        fill_disk(patch, "2.png", after=0)
        message = r"2.png: no space left .*\. The results so far are safe in .*incompl"
        with pytest.raises(mr.WriteError, match=message):
            drawn.predict(out)
    first_two = [entry for entry in expected if entry["file_name"] != "2.png"]
    assert json.loads((out / "results.incomplete.json").read_text()) == first_two
    assert (out / "results.json").read_text() == "earlier"
    assert sorted(p.name for p in out.glob("*.png")) == ["0.png", "1.png"]
    assert not list(out.glob(".*"))

    def interrupted(instances: mr.Instances, path: Path, *_: Any) -> None:
        if path.name == "1.png":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("maskrcnn.prediction.predict_files._save_overlay", interrupted)
        with pytest.raises(mr.Interrupted, match=r"The results so far are safe in .*: 1 image$"):
            drawn.predict(out)
    kept = json.loads((out / "results.incomplete.json").read_text())
    assert {entry["file_name"] for entry in kept} == {"0.png"}

    drawn.predict(out)
    assert json.loads((out / "results.json").read_text()) == expected
    assert not (out / "results.incomplete.json").exists()


def test_results_that_the_system_cuts_off_end_with_a_whole_entry(
    drawn: Drawn, tmp_path: Path
) -> None:
    drawn.predict(tmp_path / "whole")
    expected = json.loads((tmp_path / "whole/results.json").read_text())
    size = (tmp_path / "whole/results.json").stat().st_size
    with (
        limited_files(size - 10),
        pytest.raises(mr.WriteError, match=r"so far are safe in .*: 2 images"),
    ):
        mr.predict_files(
            drawn.predictor, [drawn.folder], tmp_path / "out", overlays=False, progress=False
        )
    kept = json.loads((tmp_path / "out/results.incomplete.json").read_text())
    assert kept == [entry for entry in expected if entry["file_name"] != "2.png"]


# Images that vanish or break


class Break(mr.Callback):
    """Removes or cuts off images after the first step."""

    def __init__(self, *paths: Path, cut: bool = False) -> None:
        self.paths = paths
        self.cut = cut

    def on_step(self, run: mr.ActiveRun, row: Any) -> None:
        for path in self.paths if run.step == 1 else ():
            content = path.read_bytes()
            path.unlink()
            if self.cut:
                path.write_bytes(content[: len(content) // 2])


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mr.CocoDataset:
    """Six images that a test may break; none stays decoded in memory."""
    monkeypatch.setattr(TrainingSet.__init__, "__defaults__", (0, None))
    return mr.CocoDataset(training_run.draw(tmp_path / "own", 6))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cut", [False, True])
def test_an_image_that_breaks_during_a_run_is_skipped_and_counted(
    own: mr.CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int, cut: bool
) -> None:
    broken = Break(tmp_path / "own/3.png", cut=cut)
    with pytest.warns(UserWarning, match=r"skipped a training image: .*3\.png") as warned:
        run = go(own, tmp_path / "run", broken, steps=12, workers=workers)
    assert len(warned) == 1, "one warning per image"
    assert len(run.skipped) == 1
    assert "3.png" in run.skipped[0]
    assert len(read_rows(run.out / "metrics.csv")) == 12
    assert "skipped 1 unreadable image: " in capsys.readouterr().out


def test_too_many_broken_images_stop_a_run_that_continues_after_the_repair(
    own: mr.CocoDataset, tmp_path: Path
) -> None:
    spare = shutil.copytree(tmp_path / "own", tmp_path / "spare")
    broken = Break(tmp_path / "own/3.png", tmp_path / "own/4.png")
    message = (
        r"2 of 6 training images cannot be read any more \(unreadable allows 1\): .*\. "
        r"The checkpoint of step (\d+) in .*run is safe; after the repair, continue with resume=True"
    )
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(mr.ImageError, match=message),
    ):
        go(own, tmp_path / "run", broken, steps=40)
    step = read_checkpoint(tmp_path / "run/checkpoint.safetensors")[1]["state"]["step"]
    assert 2 <= step < 40

    shutil.copytree(spare, tmp_path / "own", dirs_exist_ok=True)
    go(own, tmp_path / "run", steps=step + 2, resume=True, unreadable=0.5)
    assert len(read_rows(tmp_path / "run/metrics.csv")) == step + 2


def test_a_folder_that_vanishes_stops_the_run_with_the_steps_before(
    own: mr.CocoDataset, tmp_path: Path
) -> None:
    broken = Break(*(tmp_path / "own").glob("*.png"))
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(mr.ImageError, match=r"images in a row\)\. The checkpoint of step \d"),
    ):
        go(own, tmp_path / "run", broken, steps=40)
    state = read_checkpoint(tmp_path / "run/checkpoint.safetensors")[1]["state"]
    assert state["step"] == len(read_rows(tmp_path / "run/metrics.csv")) >= 1


def test_a_validation_image_that_breaks_is_left_out_of_the_truth(
    own: mr.CocoDataset, data: mr.CocoDataset, tmp_path: Path
) -> None:
    broken = Break(tmp_path / "own/3.png")
    with pytest.warns(UserWarning, match=r"skipped a validation image: .*3\.png"):
        run = go(data, tmp_path / "run", broken, val=own)
    assert len(run.history) == 2
    without = own.subset([0, 1, 2, 4, 5])
    evaluated = mr.evaluate(run.model, without)
    assert run.best is not None
    assert run.best["val/bbox_AP"] == pytest.approx(evaluated.tasks["bbox"]["AP"], abs=1e-6)
