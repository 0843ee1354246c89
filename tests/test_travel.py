"""Every public object survives pickle, torch.save, deepcopy and the way to another process."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import multiprocessing
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import coco_samples
import numpy as np
import pytest
import torch
from models import make_batch, make_truth, tiny_config

import maskrcnn as mr
from maskrcnn.ops.pyramid import Pyramid
from maskrcnn.training.processes import Processes

CLASSES = [name for name in mr.__all__ if inspect.isclass(getattr(mr, name))]
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def through_pickle(protocol: int) -> Callable[[Any], Any]:
    return lambda value: pickle.loads(pickle.dumps(value, protocol=protocol))


def through_torch(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


TRIPS = {f"pickle {protocol}": through_pickle(protocol) for protocol in range(2, 6)}
TRIPS |= {"torch.save": through_torch, "deepcopy": copy.deepcopy}


def network(**changes: Any) -> mr.MaskRCNN:
    torch.manual_seed(0)
    return mr.MaskRCNN.from_config(tiny_config(2, keypoints=3, **changes)).eval()


def detections() -> mr.Detections:
    with torch.inference_mode():
        return network()(make_batch(((64, 64),)))


def proposals() -> mr.Proposals:
    valid = torch.ones(1, 2, dtype=torch.bool)
    return mr.Proposals(boxes=torch.rand(1, 2, 4), scores=torch.rand(1, 2), valid=valid)


def instances() -> mr.Instances:
    return mr.predict(network(), IMAGE)


class Darker(mr.Augmentation):
    """An augmentation of one's own."""


class Counting(mr.Callback):
    """A callback of one's own."""


class Size(mr.ExtraHead):
    """A head of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)


def matched() -> mr.MatchedRoIs:
    ids = torch.arange(2)
    batch = make_batch()
    return mr.MatchedRoIs(
        features=torch.rand(2, 3, 4, 4),
        boxes=torch.rand(2, 4),
        labels=ids,
        annotation_ids=ids,
        valid=ids == 1,
        image=ids,
        object=ids,
        pyramid=Pyramid.of([torch.rand(1, 3, 8, 8)]),
        batch=batch,
        truth=make_truth(tiny_config(2, keypoints=3), batch),
    )


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[], Any]]:
    """One object of each public class."""
    folder = tmp_path_factory.mktemp("data")
    data = mr.CocoDataset(coco_samples.write(folder), folder)
    recipe = mr.choose_recipe(data, memory=4, device="cpu")
    plan = mr.TrainingPlan(
        recipe=recipe,
        data=data,
        val=data.subset([0]),
        val_source="one image",
        out=folder / "run",
        resume=False,
        unlabeled=None,
        device="cpu",
        progress=False,
        processes=Processes.start("cpu"),
        started=0.0,
        clock=time.monotonic,
    )
    truth = data.truth()
    result = {"image_id": 70, "category_id": 4, "score": 0.5, "bbox": [50, 10, 20, 20]}
    model = tiny_config(data.categories, keypoints=2)
    training_set = mr.TrainingSet(data, model, None)
    made = {
        "ActiveRun": lambda: mr.ActiveRun(folder, network(), mr.TrainConfig(), {"a": 1}, ("loss",)),
        "Augmentation": Darker,
        "AugmentedView": lambda: mr.AugmentedView(np.eye(3), (4, 5)),
        "BatchPlan": lambda: mr.BatchPlan(4, batch_size=2),
        "Callback": Counting,
        "ExportMismatchError": lambda: mr.ExportMismatchError("masks differ", "masks"),
        "ExtraHead": Size,
        "Interrupted": lambda: mr.Interrupted("saved", resumable=True),
        "MatchedRoIs": matched,
        "TrainingLoader": lambda: mr.TrainingLoader(training_set, [[(0, 1)]]),
        "TrainingSet": lambda: training_set,
        "WriteError": lambda: mr.WriteError("a.png: no space left"),
        "Annotation": lambda: data[0].annotations[0],
        "Batch": lambda: make_batch(),
        "Category": lambda: mr.Category("fish", 3, ("head", "tail"), ((0, 1),), (0, 1), (0.1, 0.2)),
        "CheckReport": lambda: mr.check_dataset(data, progress=False),
        "CocoDataset": lambda: data,
        "ConversionReport": lambda: mr.convert_annotations(data, folder / "copy.json", "coco"),
        "DataError": lambda: mr.DataError("train.json: wrong"),
        "DataWarning": lambda: mr.DataWarning("train.json: odd"),
        "DatasetSummary": lambda: mr.DatasetSummary("out", images=3, notes=["blank lines: 1"]),
        "Detections": detections,
        "DownloadError": lambda: mr.DownloadError("no network"),
        "Evaluation": lambda: mr.evaluate([result], truth),
        "ImageError": lambda: mr.ImageError("a.png: truncated"),
        "Instances": instances,
        "MaskRCNN": network,
        "ModelConfig": lambda: tiny_config(2, keypoints=3),
        "NonFiniteLossError": lambda: mr.NonFiniteLossError("step 3: expected finite", [4, 7]),
        "Predictor": lambda: mr.Predictor(network(), min_score=0.3, tta="flip", exact=True),
        "Proposals": proposals,
        "Ranking": lambda: mr.Ranking((), (("a.png", "unreadable"),)),
        "Recipe": lambda: recipe,
        "Record": lambda: data[0],
        "Run": lambda: mr.Run(network(), folder, [{"val/AP": 0.5}], {"val/AP": 0.5}),
        "TrainingPlan": lambda: plan,
        "Truth": lambda: make_truth(tiny_config(2, keypoints=3), make_batch()),
        "WeightsError": lambda: mr.WeightsError("m.pth: damaged"),
    }
    for name in CLASSES:  # configs of parts, which need no arguments
        if name.endswith("Config"):
            made.setdefault(name, getattr(mr, name))
    return made


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Compares by content."""
    assert type(a) is type(b), where
    if isinstance(a, mr.MaskRCNN):
        assert_same(a.state_dict(), b.state_dict(), f"{where}.state_dict")
        flags = ("config", "training", "optimized", "channels_last")
        assert [getattr(a, flag) for flag in flags] == [getattr(b, flag) for flag in flags]
        assert repr(a) == repr(b)
    elif isinstance(a, mr.Predictor):
        assert_same(vars(a), vars(b), where)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype, where
        assert a.shape == b.shape, where
        assert a.tobytes() == b.tobytes(), where
    elif isinstance(a, mr.CocoDataset):
        assert_same(a.truth(), b.truth(), f"{where}.truth")
        assert (a.warnings, a.categories, repr(a)) == (b.warnings, b.categories, repr(b))
        assert np.array_equal(a.image(0), b.image(0))
    elif isinstance(a, Exception):
        assert (str(a), a.args, vars(a)) == (str(b), b.args, vars(b)), where
    elif isinstance(a, torch.nn.Module):
        assert_same(a.state_dict(), b.state_dict(), f"{where}.state_dict")
    elif dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            name = field.name
            assert_same(getattr(a, name), getattr(b, name), f"{where}.{name}")
    elif isinstance(a, Mapping):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, Sequence) and not isinstance(a, str):
        assert len(a) == len(b), where
        for n, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, f"{where}[{n}]")
    elif isinstance(a, mr.BatchPlan):
        assert [*a.batches(stop=5)] == [*b.batches(stop=5)]
    elif type(a).__eq__ is object.__eq__ and hasattr(a, "__dict__"):
        assert_same(vars(a), vars(b), where)
    else:
        assert a == b, where


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_object_survives_every_trip(
    name: str, examples: dict[str, Callable[[], Any]]
) -> None:
    if name.endswith("Log"):
        package = getattr(mr, name).package
        pytest.importorskip(package, reason=f"{name} needs the package {package}")
        examples = {**examples, name: getattr(mr, name)}
    assert name in examples, f"{name} is public: add an example of it to this test"
    value = examples[name]()
    for trip, travel in TRIPS.items():
        assert_same(value, travel(value), f"{name} through {trip}")


def optimized() -> mr.MaskRCNN:
    return mr.optimize_for_inference(network())


def shipped() -> mr.MaskRCNN:
    return mr.load("nuclei")


def with_timm_trunk() -> mr.MaskRCNN:
    return network(trunk=mr.TrunkConfig(timm="resnet10t", norm="batch", frozen_stages=0))


def with_c4_neck() -> mr.MaskRCNN:
    config = tiny_config(2)
    config = dataclasses.replace(
        config,
        trunk=dataclasses.replace(config.trunk, depth=50, res2_channels=16),
        neck=mr.NeckConfig(kind="c4"),
        rpn=dataclasses.replace(config.rpn, sizes=((16, 32, 64),)),
        box=dataclasses.replace(config.box, fcs=()),
    )
    return mr.MaskRCNN.from_config(config).eval()


@pytest.mark.parametrize("make", [shipped, optimized, with_timm_trunk, with_c4_neck])
def test_every_kind_of_network_predicts_the_same_after_the_trip(
    make: Callable[[], mr.MaskRCNN],
) -> None:
    if make is with_timm_trunk:
        pytest.importorskip("timm")
    model = make()
    for trip, travel in TRIPS.items():
        assert_same(model, travel(model), trip)
    batch = make_batch(((64, 64),))
    with torch.inference_mode():
        before = model(batch)
        after = through_pickle(2)(model)(batch)
    assert_same(before, after)


def test_a_network_in_training_survives_and_trains_on() -> None:
    model = network().train()
    model.channels_last = True
    traveled = through_pickle(2)(model)
    assert traveled.training
    assert traveled.channels_last
    batch = make_batch()
    truth = make_truth(model.config, batch)
    before = {name: v.item() for name, v in model.losses(batch, truth).items()}
    after = {name: v.item() for name, v in traveled.losses(batch, truth).items()}
    assert before == after


def in_another_process(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What a process that starts from nothing makes of objects that were sent to it."""
    found = values["predictor"](values["data"].image(0))
    assert path.is_dir()
    return {"found": found, "error": values["error"], "records": list(values["data"])}


def test_objects_are_sent_to_a_spawned_process_and_back(
    examples: dict[str, Callable[[], Any]], tmp_path: Path
) -> None:
    predictor = mr.Predictor(network(), exact=True)
    data = examples["CocoDataset"]()
    error = mr.NonFiniteLossError("step 3", [4, 7])
    sent = {"predictor": predictor, "data": data, "error": error}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pool.apply(in_another_process, (tmp_path, sent))
    assert_same(got["error"], error)
    assert_same(got["records"], list(data))
    assert len(got["found"]) == len(predictor(data.image(0)))
