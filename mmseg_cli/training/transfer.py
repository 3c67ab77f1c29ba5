"""Weights from one rung of the ladder to the next: the body's are kept, the head is new."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmseg_cli.errors import MmsegError

BODY = "body."
ENOUGH = 0.95  # of the body's numbers must arrive


@dataclass(frozen=True)
class Transfer:
    """What arrived. Names are those of the state dict."""

    kept: list[str]
    dropped: list[str]
    new: list[str]
    body_share: float

    def as_json(self) -> dict[str, Any]:
        """Counts, and the names of what was not kept."""
        return {
            "kept": len(self.kept),
            "dropped": self.dropped,
            "new": self.new,
            "body_share": round(self.body_share, 6),
        }

    def line(self) -> str:
        """One line for the screen."""
        return (
            f"{len(self.kept)} tensors kept ({100 * self.body_share:.1f} % of the body), "
            f"{len(self.dropped)} dropped, {len(self.new)} new"
        )


def transfer(network: nn.Module, tensors: dict[str, Tensor], source: Path) -> Transfer:
    """Copy the body's tensors of equal name and shape into the network, in place; the head is never taken.

    Heads are task and dataset specific: their classes differ even where their number happens to agree.

    Raises:
        MmsegError: less than 95 % of the body's numbers arrive (another architecture).
    """
    own = network.state_dict()
    fits = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(BODY) and name in own and own[name].shape == tensor.shape
    }
    body = sum(tensor.numel() for name, tensor in own.items() if name.startswith(BODY))
    share = sum(tensor.numel() for tensor in fits.values()) / body
    if share < ENOUGH:
        what = f"is of another architecture (only {100 * share:.1f} % of the body's weights fit)"
        raise MmsegError(source, what, "run the rung before again with these parameters")
    network.load_state_dict(own | fits)
    return Transfer(
        kept=sorted(fits),
        dropped=sorted(set(tensors) - set(fits)),
        new=sorted(set(own) - set(fits)),
        body_share=share,
    )
