"""2b. Any other trunk, from timm: the only file that knows timm.

Images [B, 3, H, W], normalized  ->  C2..C5, a list of [B, c, H/s, W/s] with s = 4, 8, 16, 32.
"""

from __future__ import annotations

import difflib
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ..config import TrunkConfig
from .layers import FrozenBatchNorm2d

STRIDES = (4, 8, 16, 32)


class TimmTrunk(nn.Module):
    """A timm network cut to its features of strides 4, 8, 16, 32, with random weights.

    Raises:
        ValueError: an unknown name, a network without these strides, or a normalization or freezing that it cannot have.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        import timm  # costs a second, and only these trunks need it

        if config.timm not in timm.list_models():
            near = difflib.get_close_matches(config.timm, timm.list_models(), n=5)
            raise ValueError(
                f'trunk.timm: timm knows no model "{config.timm}"; near ones are {", ".join(near) or "none"}'
            )
        try:
            probe = timm.create_model(config.timm, features_only=True, pretrained=False)
        except RuntimeError as error:  # timm: this family has no feature extraction
            raise ValueError(
                f'trunk.timm: "{config.timm}" gives no feature maps ({error})'
            ) from error
        info: Any = probe.feature_info
        reductions = list(info.reduction())
        if not set(STRIDES) <= set(reductions):
            raise ValueError(
                f'trunk.timm: "{config.timm}" has strides {reductions}, the pyramid needs 4, 8, 16, 32'
            )
        chosen = tuple(
            len(reductions) - 1 - reductions[::-1].index(s) for s in STRIDES
        )  # the deepest map of each stride
        self.channels: tuple[int, ...] = tuple(info.channels()[i] for i in chosen)
        self.net = timm.create_model(
            config.timm, features_only=True, pretrained=False, out_indices=chosen
        )
        if config.norm == "group":
            raise ValueError(
                'trunk.norm: a timm trunk keeps its own normalization; choose "batch", or "frozen" to freeze it'
            )
        if config.norm == "frozen":
            _freeze_batch_norm(self.net)
        if config.frozen_stages == 5:
            self.requires_grad_(False)
        elif config.frozen_stages:
            raise ValueError(
                f"trunk.frozen_stages: a timm trunk is trained whole (0) or not at all (5), got {config.frozen_stages}"
            )

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        return self.net(x)


def _freeze_batch_norm(module: nn.Module) -> None:
    """Sets every BatchNorm to constant statistics and affine."""
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            _freeze_batch_norm(child)
            continue
        frozen = FrozenBatchNorm2d(child.num_features, child.eps)
        frozen.load_state_dict(
            {k: v for k, v in child.state_dict().items() if k != "num_batches_tracked"}
        )
        activation = nn.Sequential(
            getattr(child, "drop", nn.Identity()), getattr(child, "act", nn.Identity())
        )  # timm's BatchNormAct2d
        setattr(module, name, nn.Sequential(frozen, *activation))
