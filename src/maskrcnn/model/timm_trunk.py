"""2b. Any other trunk, from timm: the only file that imports timm.

Images [B, 3, H, W], normalized  ->  C2..C5, a list of [B, c, H/s, W/s] with s = 4, 8, 16, 32.
"""

from __future__ import annotations

import difflib
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ..config import TrunkConfig
from ..kernels.onednn import emulated
from .layers import FrozenBatchNorm2d

STRIDES = (4, 8, 16, 32)


class TimmTrunk(nn.Module):
    """A timm network cut to its features of strides 4, 8, 16, 32, with random weights.

    Raises:
        ValueError: the name is unknown, the network lacks these strides, or it does not support the
            normalization or the freezing.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        import timm  # takes a second, and only these trunks need it

        known = timm.list_models()
        if config.timm not in known:
            near = difflib.get_close_matches(config.timm, known, n=5)
            raise ValueError(
                f'trunk.timm: timm has no model "{config.timm}"; '
                f"similar names: {', '.join(near) or 'none'}"
            )
        try:
            probe = timm.create_model(config.timm, features_only=True, pretrained=False)
        except RuntimeError as error:  # timm: this family has no feature extraction
            raise ValueError(
                f'trunk.timm: "{config.timm}" provides no feature maps ({error})'
            ) from error

        # Of each stride the deepest map.
        info: Any = probe.feature_info
        reductions = list(info.reduction())
        if not set(STRIDES) <= set(reductions):
            raise ValueError(
                f'trunk.timm: expected a model with strides 4, 8, 16, 32, got "{config.timm}" '
                f"with strides {reductions}"
            )
        self.indices = tuple(len(reductions) - 1 - reductions[::-1].index(s) for s in STRIDES)
        self.channels: tuple[int, ...] = tuple(info.channels()[i] for i in self.indices)
        self.net = timm.create_model(
            config.timm, features_only=True, pretrained=False, out_indices=self.indices
        )

        if config.norm == "group":
            raise ValueError(
                "trunk.norm: a timm trunk keeps its own normalization; "
                'use "batch", or "frozen" to freeze it'
            )
        if config.norm == "frozen":
            _freeze_batch_norm(self.net)
        if config.frozen_stages == 5:
            self.requires_grad_(False)
        elif config.frozen_stages:
            raise ValueError(
                "trunk.frozen_stages: expected 0 (train all) or 5 (train none) for a timm trunk, "
                f"got {config.frozen_stages}"
            )

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        return emulated(self.net, x)


def _freeze_batch_norm(module: nn.Module) -> None:
    """Replaces every BatchNorm by one with constant statistics and affine."""
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            _freeze_batch_norm(child)
            continue
        frozen = FrozenBatchNorm2d(child.num_features, child.eps)
        frozen.load_state_dict(
            {k: v for k, v in child.state_dict().items() if k != "num_batches_tracked"}
        )
        # timm's BatchNormAct2d also holds a dropout and an activation.
        rest = [getattr(child, part, nn.Identity()) for part in ("drop", "act")]
        setattr(module, name, nn.Sequential(frozen, *rest))
