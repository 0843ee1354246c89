"""Checkpoints: exact, never truncated, with a report of changed settings."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from maskrcnn.config import TrainConfig
from maskrcnn.settings import to_dict
from maskrcnn.training.checkpoint import (
    EarlierSession,
    differences,
    fingerprint,
    read_checkpoint,
    refuse_other_settings,
    replacing,
    write_checkpoint,
)


def test_tensors_and_state_come_back_bit_for_bit(tmp_path: Path) -> None:
    weight = torch.randn(3, 5, 2, 2).to(memory_format=torch.channels_last)
    tensors = {
        "model": {"a.weight": weight, "a.count": torch.tensor(7)},
        "optimizer": {"a.weight/step": torch.tensor(3.0)},
    }
    state = {"step": 12, "best": {"ap": 0.1 + 0.2}, "total": None}
    write_checkpoint(tmp_path / "c.safetensors", tensors, state)
    read, read_state = read_checkpoint(tmp_path / "c.safetensors")
    assert read_state == state
    assert {group: set(named) for group, named in read.items()} == {
        group: set(named) for group, named in tensors.items()
    }
    assert all(
        torch.equal(value, read[group][name])
        for group, named in tensors.items()
        for name, value in named.items()
    )


def test_the_umask_decides_who_may_read_a_checkpoint(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_checkpoint(tmp_path / "checkpoint.safetensors", {"model": {"a": torch.zeros(1)}}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "checkpoint.safetensors").stat().st_mode) == 0o640


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, {"model": {"w": torch.ones(2)}}, {"step": 1})

    def half_a_write() -> None:
        with replacing(path) as partial:
            partial.write_bytes(b"half a file")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        half_a_write()
    assert read_checkpoint(path)[1] == {"step": 1}
    write_checkpoint(path, {"model": {"w": torch.ones(2)}}, {"step": 2})
    assert read_checkpoint(path)[1] == {"step": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", bytes(1000)])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.safetensors: .*start"):
        read_checkpoint(tmp_path / "c.safetensors")


def test_differences_name_each_changed_setting() -> None:
    then = {"train": to_dict(TrainConfig())}
    now = {"train": to_dict(TrainConfig(batch_size=8)) | {"novel": 1}}
    assert differences(then, then) == []
    assert differences(then, now) == [
        "train.batch_size: was 4, now 8",
        "train.novel: was None, now 1",
    ]


class Data(list):
    categories = (SimpleNamespace(name="cell"),)
    annotations_path = None

    def truth(self) -> dict:
        return {"annotations": [a for r in self for a in r.annotations]}


def test_a_resumed_run_that_lacks_its_validation_data_is_told_so(tmp_path: Path) -> None:
    earlier = EarlierSession({}, {}, {"validation": {"images": 6}, "processes": 1})
    with pytest.raises(ValueError, match="Give the same validation data: val= "):
        refuse_other_settings(tmp_path, earlier, {"validation": {"images": 3}, "processes": 1})
    with pytest.raises(ValueError, match="Give the same validation data: val= "):
        refuse_other_settings(tmp_path, earlier, {"processes": 1})
    with pytest.raises(ValueError, match="these settings differ") as error:
        refuse_other_settings(tmp_path, earlier, earlier.settings | {"data": {"images": 3}})
    assert "--val" not in str(error.value)


def test_a_fingerprint_changes_with_an_annotation_or_an_image() -> None:
    def data(box: float, name: str = "1.png") -> Data:
        return Data(
            [SimpleNamespace(image_id=1, file_name=name, annotations=[{"bbox": [box, 0, 1, 1]}])]
        )

    assert fingerprint(data(1)) == fingerprint(data(1))
    assert differences(fingerprint(data(1)), fingerprint(data(2)))[0].startswith("sha256")
    assert differences(fingerprint(data(1)), fingerprint(data(1, "2.png")))[0].startswith("sha256")
