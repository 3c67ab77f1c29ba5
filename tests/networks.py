"""Networks that take milliseconds."""

from __future__ import annotations

from torch import nn

NETWORK = {
    "block": "mmbconv",
    "layout": "uniform",
    "width": 4,
    "depth": 1,
    "levels": 2,
    "stem_stride": 2,
    "expansion": 2.0,
    "se_ratio": 0.25,
    "norm": "batch",
    "activation": "silu",
}


class Small(nn.Sequential):
    """What another library's network is in tests: x_BCHW to logits_BKHW of the same size."""

    def __init__(self, classes):
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, classes, 1))
