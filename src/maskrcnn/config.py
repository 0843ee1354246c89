"""Every setting of a model and of a training run, as frozen dataclasses.

A configuration is plain data. `ModelConfig` says what a network is and is stored in every checkpoint; `TrainConfig` says how one is trained.
Ready-made ones are in `presets`; `settings` turns them into plain data and back and applies overrides.

Lengths are pixels of the model's input unless a field says otherwise; sizes are (height, width).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Norm = Literal["none", "batch", "frozen", "group"]

# OKS standard deviations of the 17 COCO person keypoints (cocodataset.org, keypoint evaluation), used where a category names no own.
COCO_PERSON_SIGMAS = (
    0.026,
    0.025,
    0.025,
    0.035,
    0.035,
    0.079,
    0.079,
    0.072,
    0.072,
    0.062,
    0.062,
    0.107,
    0.107,
    0.087,
    0.087,
    0.089,
    0.089,
)
DEFAULT_SIGMA = 0.05


@dataclass(frozen=True)
class Category:
    """What one kind of object is called and, where it has a skeleton, what its keypoints are."""

    name: str
    id: int
    """The id in the annotation file. Any integer; inside the model labels are 0..C-1 in the order of the categories."""
    keypoints: tuple[str, ...] = ()
    """Names of the keypoints, empty for a category without a skeleton."""
    skeleton: tuple[tuple[int, int], ...] = ()
    """Limbs as pairs of indices into `keypoints`, from 0."""
    flip: tuple[int, ...] = ()
    """`flip[j]` is the keypoint that j becomes in a mirror image (left ankle -> right ankle); empty = none changes."""
    sigmas: tuple[float, ...] = ()
    """OKS standard deviation of each keypoint; empty = COCO's for its 17 keypoints, else 0.05 each."""

    def __post_init__(self) -> None:
        count = len(self.keypoints)
        if any(not 0 <= j < count for limb in self.skeleton for j in limb):
            raise ValueError(
                f'category "{self.name}": skeleton refers to keypoints outside 0..{count - 1}: {self.skeleton}'
            )
        if self.flip and sorted(self.flip) != list(range(count)):
            raise ValueError(
                f'category "{self.name}": flip must name each of the {count} keypoints once, got {self.flip}'
            )
        if self.sigmas and len(self.sigmas) != count:
            raise ValueError(
                f'category "{self.name}": {len(self.sigmas)} sigmas for {count} keypoints; give one for each'
            )

    @property
    def oks_sigmas(self) -> tuple[float, ...]:
        """One OKS standard deviation for each keypoint."""
        if self.sigmas:
            return self.sigmas
        return (
            COCO_PERSON_SIGMAS
            if len(self.keypoints) == 17
            else (DEFAULT_SIGMA,) * len(self.keypoints)
        )

    @property
    def mirrored(self) -> tuple[int, ...]:
        """The keypoint that each keypoint becomes in a mirror image."""
        return self.flip or tuple(range(len(self.keypoints)))


@dataclass(frozen=True)
class InputConfig:
    """From an image to the tensor that the trunk sees: the resize rule, the normalization, the padding."""

    min_size: int | None = 800
    """The shorter side is scaled to this; None keeps the image's own scale."""
    max_size: int | None = 1333
    """The longer side never exceeds this."""
    scale: float = 1.0
    """Magnification where `min_size` is None (2 shows small objects twice as large)."""
    resize: Literal["pillow", "torch"] = "pillow"
    """pillow: uint8, bilinear, antialiased (Detectron2's and ours). torch: float, bilinear, not antialiased (torchvision's)."""
    rounding: Literal["nearest", "floor"] = "nearest"
    """How the new side is made whole: int(x + 0.5), or floor (torchvision)."""
    size_divisor: int = 32
    """Batches are padded at the right and bottom to a multiple of this; 1 = no padding beyond the largest image."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Per channel, 0..255, in `channel_order`."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channel_order: Literal["rgb", "bgr"] = "rgb"
    intensity_range: tuple[float, float] | None = None
    """Values of 16-bit and float images that become 0 and 255, fitted on the training data; None = the full range of the file's type."""


@dataclass(frozen=True)
class TrunkConfig:
    """The convolutional network that makes features of strides 4, 8, 16, 32."""

    timm: str = ""
    """A timm model's name, or empty for the package's own ResNet / ResNeXt that the next fields describe."""
    depth: Literal[18, 34, 50, 101, 152] = 50
    groups: int = 1
    """Cardinality of a ResNeXt."""
    width_per_group: int = 64
    """Channels of a bottleneck in res2 are groups * width_per_group."""
    stem_channels: int = 64
    res2_channels: int = 256
    """Output channels of res2, doubled at each later stage (64 for depth 18 and 34)."""
    stride_in_1x1: bool = False
    """Stride in the first 1x1 convolution (original ResNet, the paper) or in the 3x3 (torchvision, ResNeXt)."""
    res5_dilation: Literal[1, 2] = 1
    norm: Norm = "frozen"
    norm_eps: float = 1e-5
    frozen_stages: int = 2
    """How many of stem, res2, .., res5 keep their weights in training."""


@dataclass(frozen=True)
class NeckConfig:
    """How trunk features become the levels that the RPN and the heads read."""

    kind: Literal["fpn", "c4", "dc5"] = "fpn"
    """fpn: P2..P6. c4: res4 alone, res5 is the RoI head. dc5: res5 alone, dilated."""
    channels: int = 256
    levels: tuple[int, ...] = (2, 3, 4, 5)
    """Trunk stages that the FPN merges; the RPN sees one level more, a subsampled last one."""
    norm: Norm = "none"
    fuse: Literal["sum", "average"] = "sum"


@dataclass(frozen=True)
class RPNConfig:
    """Anchors, the region proposal network and its sampling."""

    sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    """Square roots of the anchor areas, a tuple for each level."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width."""
    order: Literal["size", "ratio"] = "size"
    """Which of size and ratio varies slowest on a level with several sizes (Detectron2: size; torchvision: ratio)."""
    rounded: bool = False
    """Round cell anchors to whole pixels (torchvision)."""
    offset: float = 0.0
    """Shift of the anchor centers in strides (0: the cell's corner, 0.5: its middle)."""
    stride: Literal["nominal", "padded"] = "nominal"
    """padded: padded image size // grid size per axis, as torchvision has it (it differs at P6)."""
    convs: tuple[int, ...] = (256,)
    """Output channels of each 3x3 convolution in the head."""
    pre_nms_train: int = 2000
    """Best-scored anchors kept before NMS, per level."""
    pre_nms_test: int = 1000
    post_nms_train: int = 1000
    """Proposals kept after NMS, per image over all levels."""
    post_nms_test: int = 1000
    nms_iou: float = 0.7
    nms_score: Literal["logit", "probability"] = "logit"
    """What NMS ranks by. Probabilities (torchvision) tie where logits are large, and then the finer level wins."""
    min_size: float = 0.0
    """Proposals narrower or lower than this are dropped (0 drops only those without area)."""
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    samples: int = 256
    """Anchors per image that the loss sees."""
    positive_fraction: float = 0.5
    smooth_l1_beta: float = 0.0
    box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    loss_weight: float = 1.0
    box_loss_weight: float = 1.0


@dataclass(frozen=True)
class RoIConfig:
    """How a head reads its RoIs from the feature levels."""

    size: int = 7
    """Bins a side."""
    sampling_ratio: int = 2
    """Samples a side in each bin; 0 = adaptive, one for each feature cell that the bin spans."""
    aligned: bool = True
    """Shift by half a cell so that continuous coordinates are met exactly (False: torchvision's models)."""
    level_epsilon: Literal["ratio", "log"] = "ratio"
    """Where the tie-breaker of the level assignment is added: Detectron2's ratio + 1e-8, or torchvision's log2(..) + 1e-6."""


@dataclass(frozen=True)
class BoxHeadConfig:
    """Classification and box regression of proposals, and the choice of detections."""

    roi: RoIConfig = RoIConfig()
    convs: tuple[int, ...] = ()
    fcs: tuple[int, ...] = (1024, 1024)
    norm: Norm = "none"
    class_agnostic: bool = False
    """One box for all classes instead of one each."""
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    samples: int = 512
    """Proposals per image that the loss sees."""
    positive_fraction: float = 0.25
    positive_iou: float = 0.5
    smooth_l1_beta: float = 0.0
    classification_weight: float = 1.0
    regression_weight: float = 1.0
    sigmoid: bool = False
    """Independent sigmoid scores instead of a softmax (Detectron2's USE_SIGMOID_CE)."""
    score_threshold: float = 0.05
    nms: Literal["class", "all", "soft"] = "class"
    """class: among boxes of one class. all: over classes. soft: Gaussian decay of scores per class (Bodla et al. 2017)."""
    nms_iou: float = 0.5
    soft_sigma: float = 0.5
    min_size: float = 0.0
    """Detections narrower or lower than this are dropped before NMS."""
    max_detections: int = 100


@dataclass(frozen=True)
class MaskHeadConfig:
    """The small fully convolutional network that draws a mask in each box."""

    roi: RoIConfig = RoIConfig(size=14)
    convs: tuple[int, ...] = (256, 256, 256, 256)
    upsample: tuple[int, ...] = (256,)
    """Channels of each 2x2 stride-2 deconvolution: one gives 28 pixels from 14, two 56, three 112."""
    norm: Norm = "none"
    class_agnostic: bool = False
    max_positives: int | None = None
    """At most this many positive RoIs an image reach the mask loss (a CPU's time goes there); None = all."""
    truth_size: int = 112
    """Side of the stored truth crops, in which each annotated mask is kept."""
    loss_weight: float = 1.0
    paste: Literal["border", "grid", "torchvision"] = "border"
    """How a mask is drawn into the image. grid: sampled at pixel centers, zero outside (Detectron2). border: the same with the edge
    cells continued to the edge of the box (ours). torchvision: whole-pixel boxes and a resize."""
    threshold: float = 0.5


@dataclass(frozen=True)
class KeypointHeadConfig:
    """One heat map per keypoint in each box."""

    roi: RoIConfig = RoIConfig(size=14)
    convs: tuple[int, ...] = (512,) * 8
    norm: Norm = "none"
    max_positives: int | None = None
    shared: bool = False
    """True: all categories have one skeleton and share its channels (imported models). False: each category has channels of its own."""
    decode: Literal["subpixel", "bicubic"] = "subpixel"
    """subpixel: peak of the heat map, refined by the mean around it. bicubic: the map resized to the box's pixels, whole-pixel peak (torchvision,
    Detectron2)."""
    coco_offset: float = 0.5
    """What was added to COCO's integer keypoints to make them continuous: 0.5 is a pixel's center; torchvision's models add nothing."""
    loss_weight: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """One Mask R-CNN: from pixels to boxes, masks and keypoints."""

    categories: tuple[Category, ...]
    input: InputConfig = InputConfig()
    trunk: TrunkConfig = TrunkConfig()
    neck: NeckConfig = NeckConfig()
    rpn: RPNConfig = RPNConfig()
    box: BoxHeadConfig = BoxHeadConfig()
    mask: MaskHeadConfig | None = MaskHeadConfig()
    keypoint: KeypointHeadConfig | None = None

    def __post_init__(self) -> None:
        if not self.categories:
            raise ValueError("a model needs at least one category")
        if self.keypoint is not None and self.num_keypoint_channels == 0:
            raise ValueError(
                'a keypoint head needs a category with keypoints; set keypoint to None or give a Category(keypoints=("nose", ..))'
            )
        levels = len(self.neck.levels) + 1 if self.neck.kind == "fpn" else 1
        if len(self.rpn.sizes) != levels:
            raise ValueError(
                f"rpn.sizes has {len(self.rpn.sizes)} levels, the {self.neck.kind} neck has {levels}; give one tuple of sizes for each"
            )

    @property
    def num_classes(self) -> int:
        """Foreground categories."""
        return len(self.categories)

    @property
    def keypoint_slices(self) -> tuple[tuple[int, int], ...]:
        """For each category the first heat-map channel of its skeleton and the number of its keypoints."""
        if self.keypoint is not None and self.keypoint.shared:
            return tuple((0, len(c.keypoints)) for c in self.categories)
        starts, start = [], 0
        for category in self.categories:
            starts.append((start, len(category.keypoints)))
            start += len(category.keypoints)
        return tuple(starts)

    @property
    def num_keypoint_channels(self) -> int:
        """Heat maps that the keypoint head makes for each RoI."""
        return max(start + count for start, count in self.keypoint_slices)


@dataclass(frozen=True)
class AugmentConfig:
    """What is done at random to a training image; every geometric part goes into one 3x3 matrix."""

    flip_horizontal: float = 0.5
    """Probability."""
    flip_vertical: float = 0.0
    right_angles: bool = False
    """Turn by 0, 90, 180 or 270 degrees, for images without an up and down."""
    rotation: float = 0.0
    """Turn by up to this many degrees either way."""
    scale: tuple[float, float] = (0.8, 1.0)
    """Range of a factor on the size that the model's resize rule gives, each octave as likely as another; (0.1, 2) and a crop: large-scale jitter."""
    crop: int | None = None
    """Side of a square window cut from the scaled image; a smaller image is taken whole, and padded with its batch. None = the whole image."""
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    copy_paste: float = 0.0
    """Probability that objects with masks, cut out of another image, are laid onto this one (Ghiasi et al. 2021)."""
    copy_paste_choices: int = 1
    """Images drawn at random, the nearest of which in mean color gives its objects, or where none is near the image itself. For data of several
    kinds, such as microscopes; 1 takes any image, as the paper does."""


@dataclass(frozen=True)
class UnlabeledConfig:
    """How images without annotations are learnt from: the averaged model answers, what it is sure of is taught."""

    ratio: float = 1.0
    """Unlabeled images for each annotated one of a batch; they have a pass of their own, so that memory does not grow."""
    burn_in: float = 0.25
    """Part of the run before they are used: a teacher that knows nothing teaches errors."""
    ramp: float = 0.1
    """Part of the run in which their weight then grows to `weight`."""
    weight: float = 1.0
    """Of their losses beside those of the annotated images."""
    threshold: float = 0.8
    """Detections scored at least this are taught as objects."""
    ignore_threshold: float = 0.2
    """Detections scored between this and `threshold` are neither taught as objects nor as background."""
    mask_threshold: float = 0.8
    """An object's mask is taught where its cells' mean probability of being foreground is at least this."""
    keypoint_threshold: float = 0.1
    """A keypoint is taught where its heat map's peak is at least this."""


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    epochs: float = 24.0
    """Passes over the data, counted in as many images as it has; `steps` or `max_time`, where given, decide instead."""
    steps: int | None = None
    """Optimizer steps."""
    max_time: float | None = None
    """Seconds of training. The number of steps follows from those of the first tenth, is corrected on the way, and is kept in the checkpoint."""
    batch_size: int = 4
    """Images per process in one forward pass."""
    accumulate: int = 1
    """Forward passes per optimizer step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 5e-4
    """At `reference_batch` images per step; scaled linearly (sgd) or by the square root (adamw) of the actual number."""
    reference_batch: int = 4
    momentum: float = 0.9
    weight_decay: float = 0.05
    """Not applied to biases and norms."""
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[float, ...] = (0.67, 0.89)
    """Fractions of the run at which a step schedule multiplies the rate by `gamma`."""
    gamma: float = 0.1
    warmup: int = 100
    """Steps of linear warm-up (at most a tenth of the run)."""
    clip_norm: float = 10.0
    """Largest gradient norm; 0 = no clipping."""
    ema: float = 0.998
    """Decay of the averaged weights that are evaluated and saved as the model; 0 = none."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    activation_checkpointing: bool = False
    """Keep only what the stages of the trunk give and compute their inside again for the gradients: less memory, about a fifth more time. The same
    gradients."""
    repeat_threshold: float = 0.0
    """Images with a category that is in less than this share of all are seen more often, sqrt(threshold / share) times; 0 = off."""
    workers: int = 0
    """Loader processes."""
    seed: int = 0
    evaluate_every: float = 1.0
    """Epochs between evaluations, where there is validation data; always at the end as well."""
    checkpoint_every: float = 60.0
    """Seconds between resumable checkpoints; also at each evaluation and at the end."""
    patience: int | None = None
    """Stop after this many evaluations without a better AP."""
    tensorboard: bool = True
    augment: AugmentConfig = AugmentConfig()
    unlabeled: UnlabeledConfig = UnlabeledConfig()
    """Takes effect where `train` is given unlabeled images."""
