"""The bound behind the region mutual information loss (Zhao et al. 2019, arXiv 1910.12037).

A pixel and its neighbours are one point of d = RADIUS ** 2 dimensions, so each image and class has a cloud Y of points
of the truth and a cloud P of points of the predicted probabilities. With their covariances S_Y, S_P and S_YP,

    M        = S_Y - S_YP (S_P)^-1 S_YP^T      posterior covariance of the truth given the prediction
    I_l(Y;P) = -1/2 log det M                  lower bound of the mutual information, without its constants

Shapes: B = batch, K = classes, H, W = height, width, h, w = after pooling, D = 2 d, N = points of a cloud.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmseg_cli.errors import MmsegError

RADIUS = 3  # side of a region, in pooled pixels
POOL = 4  # size and stride of the average pooling before, padded by half of it as in the authors' code
ALPHA = 5e-4  # the small diagonal that keeps the covariances positive definite, as in HMSA's code


def negative_bound(probability_BKHW: Tensor, truth_BKHW: Tensor) -> Tensor:
    """-I_l / d, summed over the classes: the lower, the more a prediction says about the truth. It may be negative.

    As in the authors' code, covariances are sums over the points, not means, and an absent class adds a constant.

    Args:
        probability_BKHW: float32, 0 where ignored.
        truth_BKHW: float32, 1 at a pixel's class, all 0 where ignored.

    Returns:
        bound_B, float32.

    Raises:
        MmsegError: the images have no room for a region.
    """
    if min(probability_BKHW.shape[2:]) < POOL * (RADIUS - 1):
        raise MmsegError("loss", f"rmi needs crops of {POOL * (RADIUS - 1)} pixels or more a side", "enlarge the crop")
    half = RADIUS**2
    points_BKDN = torch.cat([_points(probability_BKHW), _points(truth_BKHW)], dim=2)
    points_BKDN = points_BKDN - points_BKDN.mean(dim=3, keepdim=True)
    # The joint covariance [[S_P, S_YP^T], [S_YP, S_Y]], with the small diagonal, is L L^T, and the last block of L is
    # the Cholesky factor of M, plus the diagonal. DEVIATION: the authors invert S_P and subtract, which is the same
    # number with fewer digits; this way no rounding can make M indefinite.
    joint_BKDD = points_BKDN @ points_BKDN.transpose(2, 3)
    joint_BKDD = joint_BKDD + ALPHA * torch.eye(2 * half, dtype=joint_BKDD.dtype, device=joint_BKDD.device)
    factor_BKDD, failed_BK = torch.linalg.cholesky_ex(joint_BKDD)
    half_log_det_BK: Tensor = factor_BKDD.diagonal(dim1=2, dim2=3)[:, :, half:].log().sum(dim=2)
    half_log_det_BK = half_log_det_BK.masked_fill(failed_BK > 0, torch.nan)  # of logits that are not finite
    return (half_log_det_BK / half).sum(dim=1).float()


def _points(maps_BKHW: Tensor) -> Tensor:
    """The RADIUS x RADIUS neighbourhoods of the pooled maps: points_BKdN, float64."""
    maps_BKhw = F.avg_pool2d(maps_BKHW, kernel_size=POOL, stride=POOL, padding=POOL // 2).double()
    height, width = (size - RADIUS + 1 for size in maps_BKhw.shape[2:])
    shifted = [
        maps_BKhw[:, :, top : top + height, left : left + width] for top in range(RADIUS) for left in range(RADIUS)
    ]
    return torch.stack(shifted, dim=2).flatten(3)
