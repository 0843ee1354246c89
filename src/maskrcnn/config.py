"""Every setting of a model and of a training run, as frozen dataclasses.

A configuration is plain data. `ModelConfig` describes a network and is stored in every model file.
`TrainConfig` describes how a network is trained. `presets` has ready-made ones; `settings` converts
them to plain data and back and applies overrides.

Distances are pixels of the model's input unless a field says otherwise; sizes are (height, width).
The docstring under a field is its help text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Norm = Literal["none", "batch", "frozen", "group"]

# OKS standard deviations of COCO's 17 person keypoints (cocodataset.org, keypoint evaluation),
# used where a category has 17 keypoints and no sigmas of its own.
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
MOST_CONTEXT = 4
"""Largest factor by which boxes may be enlarged for the mask head."""


@dataclass(frozen=True)
class Category:
    """The name of one kind of object and, if it has a skeleton, its keypoints.

    Raises:
        ValueError: `skeleton`, `flip` or `sigmas` does not agree with `keypoints`.

    Example:
        >>> import maskrcnn as mr
        >>> arrow = mr.Category("arrow", 1, keypoints=("tip", "tail"), skeleton=((0, 1),))
        >>> arrow.oks_sigmas
        (0.05, 0.05)
    """

    name: str
    """The category's name, as shown in results."""
    id: int
    """The category's id in the annotation file: any integer. Inside the model, labels are 0..C-1 in
    category order."""
    keypoints: tuple[str, ...] = ()
    """Names of the keypoints. Empty: the category has no skeleton."""
    skeleton: tuple[tuple[int, int], ...] = ()
    """Limbs as pairs of indices into `keypoints`, counted from 0. Used for drawing only."""
    flip: tuple[int, ...] = ()
    """For each keypoint, the index of the one it becomes in a mirror image (left ankle: right
    ankle). Empty: none changes."""
    sigmas: tuple[float, ...] = ()
    """OKS standard deviation of each keypoint. Empty: COCO's values for 17 keypoints, otherwise
    0.05 each."""

    def __post_init__(self) -> None:
        count = len(self.keypoints)
        if any(not 0 <= j < count for limb in self.skeleton for j in limb):
            raise ValueError(
                f'category "{self.name}": skeleton refers to keypoints outside 0..{count - 1}: '
                f"{self.skeleton}"
            )

        if self.flip and sorted(self.flip) != list(range(count)):
            raise ValueError(
                f'category "{self.name}": flip must name each keypoint (0..{count - 1}) once, '
                f"got {self.flip}"
            )

        if self.sigmas and len(self.sigmas) != count:
            raise ValueError(
                f'category "{self.name}": sigmas: expected one per keypoint ({count}), '
                f"got {len(self.sigmas)}"
            )

    @property
    def oks_sigmas(self) -> tuple[float, ...]:
        """One OKS standard deviation per keypoint."""
        if self.sigmas:
            return self.sigmas
        if len(self.keypoints) == len(COCO_PERSON_SIGMAS):
            return COCO_PERSON_SIGMAS
        return (DEFAULT_SIGMA,) * len(self.keypoints)

    @property
    def mirrored(self) -> tuple[int, ...]:
        """For each keypoint, the index of the one it becomes in a mirror image."""
        return self.flip or tuple(range(len(self.keypoints)))


@dataclass(frozen=True)
class InputConfig:
    """How an image becomes the network's input: resizing, normalization and padding."""

    min_size: int | None = 800
    """Resize each image so that its shorter side has this many pixels. null: multiply its size by
    `scale` instead."""
    max_size: int | None = 1333
    """Largest allowed longer side in pixels after resizing. null: no limit."""
    scale: float = 1.0
    """Factor on the image's size where `min_size` is null; 2 makes small objects twice as large."""
    resize: Literal["pillow", "torch"] = "pillow"
    """Resize method. pillow: uint8, bilinear, antialiased (Detectron2). torch: float, bilinear, not
    antialiased (torchvision)."""
    rounding: Literal["nearest", "floor"] = "nearest"
    """How the resized sides become whole pixels. nearest: int(x + 0.5). floor: rounded down
    (torchvision)."""
    size_divisor: int = 32
    """Batches are padded at the right and bottom to a multiple of this many pixels. 1: only to the
    batch's largest image."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Mean subtracted from each channel, on a scale of 0..255, in `channel_order`."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Standard deviation that divides each channel, on a scale of 0..255, in `channel_order`."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """Channel order that the network's weights expect. Images are always given as RGB; the model
    reorders them."""
    intensity_range: tuple[float, float] | None = None
    """Values of 16-bit and float images that map to 0 and 255. null: full range of the file's type;
    training fits it to the data."""


@dataclass(frozen=True)
class TrunkConfig:
    """The convolutional network that computes features of strides 4, 8, 16 and 32."""

    timm: str = ""
    """Name of a timm model to use as the trunk. Empty: this package's ResNet or ResNeXt, which the
    other fields describe."""
    depth: Literal[18, 34, 50, 101, 152] = 50
    """Number of layers of the ResNet."""
    groups: int = 1
    """Groups of each 3x3 convolution in a bottleneck (ResNeXt's cardinality). 1: a plain ResNet."""
    width_per_group: int = 64
    """Channels per group of res2's 3x3 convolutions, doubled at each later stage. Applies to depths
    of 50 and more."""
    stem_channels: int = 64
    """Output channels of the first 7x7 convolution."""
    res2_channels: int = 256
    """Output channels of res2, doubled at each later stage (64 for depths 18 and 34)."""
    stride_in_1x1: bool = False
    """Where a bottleneck has its stride. true: its first 1x1 convolution (the paper). false: its
    3x3 (torchvision, ResNeXt)."""
    res5_dilation: Literal[1, 2] = 1
    """Dilation of res5's 3x3 convolutions. 2: res5 keeps stride 16 instead of 32; the dc5 neck sets
    this automatically."""
    norm: Norm = "frozen"
    """Normalization layer. frozen: BatchNorm with fixed statistics and weights. batch: BatchNorm.
    group: GroupNorm. none: no layer."""
    norm_eps: float = 1e-5
    """Value added to the variance in the trunk's normalization layers. Some published weights need
    0."""
    frozen_stages: int = 2
    """Number of leading stages (stem, res2, ..., res5) whose weights training does not change. 0:
    train all."""


@dataclass(frozen=True)
class NeckConfig:
    """How trunk features become the levels that the RPN and the heads read."""

    kind: Literal["fpn", "c4", "dc5"] = "fpn"
    """Type of neck. fpn: pyramid P2..P6. c4: res4 alone, with res5 as the RoI head. dc5: dilated
    res5 alone."""
    channels: int = 256
    """Channels of every pyramid level."""
    levels: tuple[int, ...] = (2, 3, 4, 5)
    """Trunk stages that the FPN merges. The RPN also reads one coarser level, subsampled from the
    last."""
    norm: Norm = "none"
    """Normalization layer after each FPN convolution. none: no layer, the convolutions have
    biases."""
    fuse: Literal["sum", "average"] = "sum"
    """How the FPN combines a level's own features with those from the coarser level."""


@dataclass(frozen=True)
class RPNConfig:
    """Anchors, the region proposal network and its sampling."""

    sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    """Anchor sizes in pixels (square root of the area), one list per level."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Anchor shapes as height / width; every size gets each of them."""
    order: Literal["size", "ratio"] = "size"
    """Which of size and ratio varies slowest among the anchors of a cell. size: Detectron2. ratio:
    torchvision."""
    rounded: bool = False
    """Round the corners of the cell anchors to whole pixels (torchvision)."""
    offset: float = 0.0
    """Shift of the anchor centers in strides. 0: the cell's upper left corner. 0.5: its center."""
    stride: Literal["nominal", "padded"] = "nominal"
    """Anchor spacing. nominal: the level's stride. padded: padded image size // grid size per axis
    (torchvision; differs at P6)."""
    convs: tuple[int, ...] = (256,)
    """Output channels of each 3x3 convolution of the RPN head."""
    pre_nms_train: int = 2000
    """Best-scored anchors kept per image and level before NMS, in training."""
    pre_nms_test: int = 1000
    """Best-scored anchors kept per image and level before NMS, in prediction."""
    post_nms_train: int = 1000
    """Proposals kept per image over all levels after NMS, in training."""
    post_nms_test: int = 1000
    """Proposals kept per image over all levels after NMS, in prediction."""
    nms_iou: float = 0.7
    """NMS suppresses a proposal whose IoU with a better one exceeds this (0..1)."""
    nms_score: Literal["logit", "probability"] = "logit"
    """What NMS ranks by. Probabilities (torchvision) tie where logits are large; the finer level
    then wins."""
    min_size: float = 0.0
    """Drop proposals whose width or height is below this many pixels. 0: drop only those without
    area."""
    positive_iou: float = 0.7
    """An anchor is positive if its IoU with an object is at least this (0..1). Each object's best
    anchor is always positive."""
    negative_iou: float = 0.3
    """An anchor is negative if its IoU with every object is below this (0..1). Between the two
    thresholds the loss ignores it."""
    samples: int = 256
    """Anchors sampled per image for the losses."""
    positive_fraction: float = 0.5
    """Largest share of positives among the sampled anchors (0..1)."""
    smooth_l1_beta: float = 0.0
    """Error at which the box loss changes from quadratic to linear, in weighted offsets. 0: plain
    L1."""
    box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    """Factors on the regression targets dx, dy, dw, dh; predicted offsets are divided by them."""
    loss_weight: float = 1.0
    """Factor on the objectness loss. 0: off."""
    box_loss_weight: float = 1.0
    """Factor on the box regression loss of the RPN. 0: off."""


@dataclass(frozen=True)
class RoIConfig:
    """How a head reads its RoIs from the feature levels."""

    size: int = 7
    """Side of the grid of bins that RoIAlign reads from each RoI."""
    sampling_ratio: int = 2
    """Samples per side in each bin. 0: adaptive, one for each feature cell that the bin spans."""
    aligned: bool = True
    """Shift RoIs by half a cell, so that samples match continuous coordinates exactly. false:
    torchvision's models."""
    level_epsilon: Literal["ratio", "log"] = "ratio"
    """Tie-breaker when a RoI gets its level. ratio: size ratio + 1e-8 (Detectron2). log: log2(...)
    + 1e-6 (torchvision)."""


@dataclass(frozen=True)
class BoxHeadConfig:
    """Classification and box regression of proposals, and the selection of detections."""

    roi: RoIConfig = RoIConfig()
    """How the head reads its RoIs from the feature levels."""
    convs: tuple[int, ...] = ()
    """Output channels of each 3x3 convolution before the fully connected layers. Empty: none."""
    fcs: tuple[int, ...] = (1024, 1024)
    """Width of each fully connected layer. Empty: none."""
    norm: Norm = "none"
    """Normalization layer after each convolution of the head. none: no layer."""
    class_agnostic: bool = False
    """Predict one box for all categories instead of one per category."""
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    """Factors on the regression targets dx, dy, dw, dh; predicted offsets are divided by them."""
    samples: int = 512
    """Proposals sampled per image for the losses."""
    positive_fraction: float = 0.25
    """Largest share of positives among the sampled proposals (0..1)."""
    positive_iou: float = 0.5
    """A proposal is positive if its IoU with an object is at least this, otherwise background
    (0..1)."""
    smooth_l1_beta: float = 0.0
    """Error at which the box loss changes from quadratic to linear, in weighted offsets. 0: plain
    L1."""
    classification_weight: float = 1.0
    """Factor on the classification loss. 0: off."""
    regression_weight: float = 1.0
    """Factor on the box regression loss. 0: off."""
    sigmoid: bool = False
    """Score each category by an independent sigmoid instead of a softmax (Detectron2's
    USE_SIGMOID_CE)."""
    score_threshold: float = 0.05
    """Drop detections scored at or below this (0..1)."""
    nms: Literal["class", "all", "soft"] = "class"
    """Kind of NMS. class: within a category. all: across categories. soft: Gaussian score decay per
    category (Bodla et al. 2017)."""
    nms_iou: float = 0.5
    """NMS suppresses a detection whose IoU with a better one exceeds this (0..1). Soft NMS ignores
    it."""
    soft_sigma: float = 0.5
    """Width of soft NMS's Gaussian: a score is multiplied by exp(-IoU^2 / sigma)."""
    min_size: float = 0.0
    """Before NMS, drop detections whose width or height is below this many pixels. 0: drop only
    those without area."""
    max_detections: int = 100
    """Largest number of detections per image."""


@dataclass(frozen=True)
class BoxMaskConfig:
    """How objects that have a box and no mask train the mask head (Tian et al. 2021, BoxInst)."""

    enlarge: tuple[float, float] = (1.1, 1.5)
    """Range of the random factor by which a true box is enlarged to a RoI in training, so that the
    RoI shows background."""
    projection_weight: float = 1.0
    """Factor on the projection loss: the mask reaches every side of its box and stays inside. 0:
    off."""
    outside_weight: float = 1.0
    """Factor on the binary cross-entropy of the cells outside the box, which are background. 0:
    off."""
    fill_weight: float = 1.0
    """Factor on the prior that cells inside the box are object, unless their color is one of the
    background. 0: off."""
    overlap_weight: float = 0.0
    """Factor on this prior where the box of another object lies too (0..1)."""
    background_difference: float = 4.0
    """A cell in the box whose color differs by less than this from one of the background counts as
    background in the prior. Cells of the RoI outside all boxes show these colors. 0: off."""
    pairwise_weight: float = 1.0
    """Factor on the pairwise loss: neighboring cells of similar color have the same label. 0:
    off."""
    ramp: float = 0.15
    """Share of the run in which the weight of the pairwise loss grows from 0 (0..1)."""
    color_difference: float = 6.0
    """Colors are similar below this difference in CIELAB, after each RoI is stretched to 0..255."""
    beside_points: float = 1.0
    """Factor on all these losses for an object that also has labeled points. 0: points alone."""
    teacher_weight: float = 0.0
    """Factor on the loss of masks that the averaged model predicts in these boxes, from `ramp` on
    (Cheng et al. 2023, BoxTeacher). 0: off. About half as much time again per step."""
    teacher_confidence: float = 0.8
    """Such a mask is used if the mean probability of its foreground is at least this (0..1)."""


@dataclass(frozen=True)
class MaskHeadConfig:
    """The small fully convolutional network that predicts a mask in each box."""

    roi: RoIConfig = RoIConfig(size=14)
    """How the head reads its RoIs from the feature levels."""
    convs: tuple[int, ...] = (256, 256, 256, 256)
    """Output channels of each 3x3 convolution."""
    upsample: tuple[int, ...] = (256,)
    """Output channels of each 2x2 deconvolution of stride 2. From 14 cells, one gives a 28 x 28
    mask, two give 56, three 112."""
    norm: Norm = "none"
    """Normalization layer after each convolution of the head. none: no layer."""
    class_agnostic: bool = False
    """Predict one mask for all categories instead of one per category."""
    max_positives: int | None = None
    """Largest number of positive RoIs per image in the mask loss; fewer save time, mainly on a CPU.
    null: all."""
    truth_size: int = 112
    """Side in cells of the grid in which each annotated mask is stored for training."""
    loss_weight: float = 1.0
    """Factor on the mask loss. 0: off."""
    context: float | None = None
    """Factor by which boxes are enlarged for the mask head (1..4). Above 1, boxes train masks too.
    null: 1, which training sets to fit the data.

    Training sets it to 1.3 where enough objects have a box and neither mask nor labeled points:
    in a box that fits tightly, such an object cannot be told from its background. The predicted
    mask is sampled back to the box. 1: objects without a mask do not train the mask head.
    """
    from_boxes: BoxMaskConfig = BoxMaskConfig()
    """How objects without a mask train the mask head where `context` is above 1."""
    paste: Literal["border", "grid", "torchvision"] = "border"
    """How masks are drawn into the image. grid: zero outside (Detectron2). border: edges extended.
    torchvision: whole-pixel boxes.

    grid samples at pixel centers. border does the same, and continues the outer cells to the edge
    of the box. torchvision rounds the box to whole pixels and resizes the mask to it.
    """
    threshold: float = 0.5
    """A pixel belongs to the object if its probability is at least this (0..1)."""


@dataclass(frozen=True)
class KeypointHeadConfig:
    """The head that predicts one heat map per keypoint in each box."""

    roi: RoIConfig = RoIConfig(size=14)
    """How the head reads its RoIs from the feature levels."""
    convs: tuple[int, ...] = (512,) * 8
    """Output channels of each 3x3 convolution."""
    norm: Norm = "none"
    """Normalization layer after each convolution of the head. none: no layer."""
    max_positives: int | None = None
    """Largest number of positive RoIs per image in the keypoint loss; fewer save time, mainly on a
    CPU. null: all."""
    shared: bool = False
    """Let all categories share the channels of one skeleton (imported models). false: each category
    has its own channels."""
    decode: Literal["subpixel", "bicubic"] = "subpixel"
    """How a heat map gives a point. subpixel: its peak, refined by the mean around it. bicubic:
    peak after resizing to the box.

    bicubic resizes the heat map to the pixels of the box and takes the peak as a whole pixel, as
    torchvision and Detectron2 do.
    """
    coco_offset: float = 0.5
    """Pixels added to COCO's integer keypoints to make them continuous. 0.5: a pixel's center. 0:
    torchvision's models."""
    loss_weight: float = 1.0
    """Factor on the keypoint loss. 0: off."""


@dataclass(frozen=True)
class ModelConfig:
    """One Mask R-CNN: from pixels to boxes, masks and keypoints.

    Raises:
        ValueError: no categories, a keypoint head without keypoints, anchor sizes for another
            number of levels, or `mask.context` out of range.

    Example:
        >>> import maskrcnn as mr
        >>> config = mr.ModelConfig(categories=(mr.Category("cell", 1), mr.Category("debris", 2)))
        >>> config.num_classes, config.box.max_detections
        (2, 100)
    """

    categories: tuple[Category, ...]
    """The kinds of objects that the model predicts; labels are indices into this list."""
    input: InputConfig = InputConfig()
    """Resizing, normalization and padding of images."""
    trunk: TrunkConfig = TrunkConfig()
    """The network that computes features."""
    neck: NeckConfig = NeckConfig()
    """How trunk features become the levels that the RPN and the heads read."""
    rpn: RPNConfig = RPNConfig()
    """Anchors and the region proposal network."""
    box: BoxHeadConfig = BoxHeadConfig()
    """The head that classifies proposals and refines their boxes, and the selection of
    detections."""
    mask: MaskHeadConfig | None = MaskHeadConfig()
    """The mask head. null: no masks."""
    keypoint: KeypointHeadConfig | None = None
    """The keypoint head, for categories with keypoints. null: no keypoints."""

    def __post_init__(self) -> None:
        if not self.categories:
            raise ValueError("a model needs at least one category")

        if self.keypoint is not None and self.num_keypoint_channels == 0:
            raise ValueError(
                "a keypoint head needs a category with keypoints; "
                'set keypoint to None or pass a Category(keypoints=("nose", ...))'
            )

        if self.mask is not None and not 1 <= (self.mask.context or 1) <= MOST_CONTEXT:
            raise ValueError(f"mask.context: expected 1 to {MOST_CONTEXT}, got {self.mask.context}")

        levels = len(self.neck.levels) + 1 if self.neck.kind == "fpn" else 1
        if len(self.rpn.sizes) != levels:
            raise ValueError(
                f"rpn.sizes: expected a tuple per level of the {self.neck.kind} neck ({levels}), "
                f"got {len(self.rpn.sizes)}"
            )

    @property
    def num_classes(self) -> int:
        """Number of foreground categories."""
        return len(self.categories)

    @property
    def keypoint_slices(self) -> tuple[tuple[int, int], ...]:
        """For each category, the first heat-map channel of its skeleton and the number of its
        keypoints."""
        if self.keypoint is not None and self.keypoint.shared:
            return tuple((0, len(c.keypoints)) for c in self.categories)

        slices = []
        start = 0
        for category in self.categories:
            slices.append((start, len(category.keypoints)))
            start += len(category.keypoints)
        return tuple(slices)

    @property
    def num_keypoint_channels(self) -> int:
        """Number of heat maps that the keypoint head makes for each RoI."""
        return max(start + count for start, count in self.keypoint_slices)


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to a training image; all geometric ones are combined into one 3x3 matrix."""

    flip_horizontal: float = 0.5
    """Probability of mirroring left and right (0..1)."""
    flip_vertical: float = 0.0
    """Probability of mirroring top and bottom (0..1)."""
    right_angles: bool = False
    """Rotate by 0, 90, 180 or 270 degrees at random, for images with no canonical orientation."""
    rotation: float = 0.0
    """Largest random rotation in degrees, in either direction. 0: off."""
    scale: tuple[float, float] = (0.8, 1.0)
    """Range of a random factor on the image's resized size, drawn uniformly in its logarithm. (0.1,
    2) with a crop: large-scale jitter."""
    crop: int | None = None
    """Side in pixels of a random square crop from the scaled image. Smaller images are kept whole.
    null: no crop."""
    brightness: float = 0.0
    """Draw a factor on the brightness from 1 - x to 1 + x, where x is this value. 0: off."""
    contrast: float = 0.0
    """Draw a factor on the contrast from 1 - x to 1 + x, where x is this value. 0: off."""
    saturation: float = 0.0
    """Draw a factor on the saturation from 1 - x to 1 + x, where x is this value. 0: off."""
    hue: float = 0.0
    """Largest random turn of the hue in either direction, as a share of the color circle (0..0.5).
    0: off."""
    copy_paste: float = 0.0
    """Probability of pasting objects from another image onto this one (0..1; Ghiasi et al. 2021):
    along their masks, or without one along where the colors of the background end."""
    copy_paste_choices: int = 1
    """Images drawn as candidates for copy-paste; the one nearest in mean color is used. 1: any
    image, as in the paper.

    For data of several kinds, such as several microscopes. If no candidate is near in color, the
    image itself is used.
    """


@dataclass(frozen=True)
class UnlabeledConfig:
    """How training uses images without annotations: confident predictions of the averaged model
    become pseudo-labels."""

    ratio: float = 1.0
    """Unlabeled images per annotated image of a batch. They get a forward pass of their own, so
    memory does not grow."""
    burn_in: float = 0.25
    """Share of the run before unlabeled images are used (0..1), because an untrained teacher
    predicts errors."""
    ramp: float = 0.1
    """Share of the run, after `burn_in`, in which their weight grows from 0 to `weight` (0..1)."""
    weight: float = 1.0
    """Final factor on the losses of unlabeled images, relative to annotated ones."""
    threshold: float = 0.8
    """Predictions scored at least this become pseudo-labels (0..1)."""
    ignore_threshold: float = 0.2
    """Predictions scored from this to `threshold` form the ignore band: neither objects nor
    background (0..1)."""
    mask_threshold: float = 0.8
    """A pseudo-label has a mask if the mean probability of its foreground cells is at least this
    (0..1)."""
    keypoint_threshold: float = 0.1
    """A pseudo-label has a keypoint if the peak of its heat map is at least this (0..1)."""


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Example:
        >>> import maskrcnn as mr
        >>> config = mr.TrainConfig(steps=1000, augment=mr.AugmentConfig(right_angles=True))
        >>> config.optimizer, config.augment.flip_horizontal
        ('adamw', 0.5)
    """

    epochs: float = 24.0
    """Passes over the training data. Ignored if `steps` or `max_time` is set."""
    steps: int | None = None
    """Number of optimizer steps. null: `epochs` or `max_time` decides."""
    max_time: float | None = None
    """Time budget in seconds; the number of steps follows from the measured speed. null: no budget.

    The first tenth of the budget sets the number of steps. It is corrected during the run and kept
    in the checkpoint.
    """
    batch_size: int = 4
    """Images per process in one forward pass."""
    accumulate: int = 1
    """Forward passes per optimizer step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer: AdamW, or SGD with momentum."""
    learning_rate: float = 5e-4
    """Peak learning rate at `reference_batch` images per step. Scaled to the actual number:
    linearly (sgd) or by square root (adamw)."""
    reference_batch: int = 4
    """Images per step for which `learning_rate` is meant."""
    momentum: float = 0.9
    """Momentum of SGD (0..1). AdamW ignores it."""
    weight_decay: float = 0.05
    """Weight decay of the optimizer; biases and normalization layers are excluded. 0: off."""
    schedule: Literal["cosine", "step"] = "cosine"
    """Learning rate after the warm-up. cosine: falls smoothly to 0. step: drops at `milestones`."""
    milestones: tuple[float, ...] = (0.67, 0.89)
    """Shares of the run at which the step schedule multiplies the learning rate by `gamma`
    (0..1)."""
    gamma: float = 0.1
    """Factor of the step schedule at each of its milestones."""
    warmup: int = 100
    """Steps of linear warm-up, at most a tenth of the run. 0: none."""
    clip_norm: float = 10.0
    """Largest norm of the gradient; larger ones are scaled down to it. 0: no clipping."""
    ema: float = 0.998
    """Decay per step of the averaged weights, which are evaluated and saved as the model (0..1). 0:
    no averaging."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the forward pass. float32: full precision. bfloat16, float16: mixed
    precision, faster on many devices."""
    activation_checkpointing: bool = False
    """Recompute activations inside the trunk's stages instead of storing them: less memory, about a
    tenth more time, equal gradients."""
    repeat_threshold: float = 0.0
    """Repeat images with a category that occurs in less than this share of all images (0..1). 0:
    off.

    Such images are drawn sqrt(threshold / share) times as often.
    """
    workers: int = 0
    """Worker processes that load and augment images. 0: the training process does it."""
    seed: int = 0
    """Seed of all random choices."""
    evaluate_every: float = 1.0
    """Epochs between evaluations on the validation data. The end of the run is always evaluated."""
    checkpoint_every: float = 60.0
    """Seconds between resumable checkpoints. Every evaluation and the end of the run also write
    one."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a better AP. null: never stop early."""
    unreadable: float = 0.01
    """Share of the images, at least one image, that may become unreadable during the run (0..1).
    They are skipped with a warning; more stop the run, which can be resumed. 0: stop at the
    first."""
    tensorboard: bool = True
    """Also write the losses and metrics as TensorBoard events."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes to training images."""
    unlabeled: UnlabeledConfig = UnlabeledConfig()
    """How unlabeled images are used. Has an effect only if `train` gets unlabeled images."""
