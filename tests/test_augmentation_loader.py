"""Any number of workers gives the same batches, and none outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from coco_samples import write

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.augmentation.loader import TrainingLoader
from maskrcnn.augmentation.training_set import TrainingSet
from maskrcnn.config import AugmentConfig
from maskrcnn.presets import maskrcnn_r18_small
from maskrcnn.runtime.atomic_files import replace_text

WILD = AugmentConfig(scale=(0.5, 1.5), rotation=20, crop=48, brightness=0.2)


@pytest.fixture
def training_set(tmp_path) -> TrainingSet:
    data = CocoDataset(write(tmp_path), tmp_path)
    return TrainingSet(data, maskrcnn_r18_small(data.categories), WILD)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
def test_workers_do_not_change_batches_nor_the_global_generator(training_set):
    plan = [[(0, 5), (1, 2**62 - 1)], [(2, 7), (0, 8)], [(1, 9)]]
    state = torch.random.get_rng_state()
    runs = [list(TrainingLoader(training_set, plan, workers)) for workers in (0, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [b.image_ids for b, _ in runs[0]] == [(70, 71), (72, 70), (71,)]
    for one, two in zip(*runs, strict=True):
        for a, b in zip(one, two, strict=True):
            for name, value in vars(a).items():
                assert (
                    torch.equal(value, getattr(b, name))
                    if isinstance(value, torch.Tensor)
                    else value == getattr(b, name)
                ), name


def test_an_endless_plan_is_read_only_as_far_as_needed(training_set):
    def endless():
        step = 0
        while True:
            yield [(step % 3, step)]
            step += 1

    batches = iter(TrainingLoader(training_set, endless(), workers=1))
    assert [next(batches)[0].seeds.item() for _ in range(5)] == [0, 1, 2, 3, 4]
    batches.close()


def test_an_unreadable_image_names_its_file(training_set, tmp_path):
    (tmp_path / "1.png").write_text("no image any more")
    with pytest.raises(ValueError, match=r"1\.png: cannot be read as an image"):
        list(TrainingLoader(training_set, [[(1, 0)]], workers=1))


def load_for_ever(annotations: str, ids: str) -> None:
    """Writes the ids of two workers to a file when they have loaded something."""
    data = CocoDataset(annotations)
    plan = ([(i % 3, i)] for i in range(10**9))
    training_set = TrainingSet(data, maskrcnn_r18_small(data.categories), AugmentConfig())
    for _ in TrainingLoader(training_set, plan, workers=2):
        replace_text(Path(ids), " ".join(str(p.pid) for p in multiprocessing.active_children()))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path, fresh_process):
    ids = tmp_path / "ids"
    parent = fresh_process.start(
        "test_augmentation_loader:load_for_ever", str(write(tmp_path)), str(ids)
    )
    deadline = time.monotonic() + 30
    while not ids.exists() and time.monotonic() < deadline:
        assert not fresh_process.has_ended(0.05), fresh_process.wait().err
    workers = [int(word) for word in ids.read_text().split()]
    assert len(workers) == 2
    os.kill(parent, signal.SIGKILL)
    assert fresh_process.wait().status == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(_runs(pid) for pid in workers)


def _runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
