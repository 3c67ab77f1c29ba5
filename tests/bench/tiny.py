"""A network that takes milliseconds."""

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
