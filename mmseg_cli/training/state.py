"""What training changes: the network, and everything that follows it from step to step."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmseg_cli.training.averaging import Ema, Lookahead
from mmseg_cli.training.checkpoint import Saved, like


@dataclass
class State:
    """Everything that a step reads and writes.

    Attributes:
        network: with the auxiliary heads, where the recipe has them.
        optimizer: of its parameters, in fused form: the loop tells it which updates to leave out.
        scaler: of the loss under float16; disabled otherwise.
        lookahead: where the recipe has it.
        ema: where the recipe has it.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    lookahead: Lookahead | None
    ema: Ema | None

    def averaged(self) -> dict[str, Tensor] | None:
        """The weights that are evaluated in place of the network's own, if any."""
        if self.ema is not None:
            return self.ema.weights
        return None if self.lookahead is None else self.lookahead.weights

    def follow(self, *, step: int, broken: Tensor | None = None) -> None:
        """Let the averages follow the update of step `step` (from 1).

        Args:
            broken: 1 on the device where that update was left out, 0 where not; None: it was not.
        """
        if self.lookahead is not None:
            self.lookahead.follow(self.network, step=step, broken=broken)
        if self.ema is not None:
            self.ema.follow(self.network, step=step)

    def training(self) -> dict[str, Any]:
        """All but the network, as plain values and tensors."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "lookahead": None if self.lookahead is None else self.lookahead.weights,
            "ema": None if self.ema is None else self.ema.weights,
        }

    def take_over(self, saved: Saved) -> None:
        """Go on from a checkpoint, in place.

        Raises:
            ValueError, KeyError, RuntimeError, TypeError: it is of another recipe; all is as it was before.
        """
        network = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        optimizer, scaler = copy.deepcopy(self.optimizer.state_dict()), self.scaler.state_dict()
        try:
            self._take_over(saved)
        except Exception:
            self.network.load_state_dict(network)
            self.optimizer.load_state_dict(optimizer)
            if scaler:
                self.scaler.load_state_dict(scaler)
            raise

    def _take_over(self, saved: Saved) -> None:
        expected, training = self.training(), saved.training
        if training.keys() != expected.keys():
            raise ValueError(f"it holds {', '.join(sorted(training))}")
        for name in ("lookahead", "ema"):
            if _shapes(expected[name]) != _shapes(training[name]):
                raise ValueError(f"its {name} is of another network")
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        of_parameter = training["optimizer"]["state"]
        self._require_own(expected["optimizer"], training["optimizer"], parameters)
        laid_out = {
            index: {key: like(value, parameters[index]) for key, value in of_parameter[index].items()}
            for index in of_parameter
        }
        self.network.load_state_dict(saved.network)
        self.optimizer.load_state_dict(training["optimizer"] | {"state": laid_out})
        self.scaler.load_state_dict(training["scaler"])
        for average, name in ((self.lookahead, "lookahead"), (self.ema, "ema")):
            if average is not None:
                for key, tensor in average.weights.items():
                    tensor.copy_(training[name][key])

    def _require_own(self, own: dict[str, Any], other: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        """Refuse optimizer state of another recipe, or with holes, which torch would take."""
        if _without_rates(own["param_groups"]) != _without_rates(other["param_groups"]):
            raise ValueError("its optimizer is another one")
        if other["state"] and other["state"].keys() != set(range(len(parameters))):
            raise ValueError("its optimizer is of another network")
        for index, values in other["state"].items():
            for value in values.values():
                if isinstance(value, Tensor) and value.dim() and value.shape != parameters[index].shape:
                    raise ValueError("its optimizer is of another network")


def _without_rates(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups apart from the learning rate, which is a function of the step."""
    return [{key: value for key, value in group.items() if key != "lr"} for group in groups]


def _shapes(weights: dict[str, Tensor] | None) -> dict[str, torch.Size] | None:
    return None if weights is None else {name: tensor.shape for name, tensor in weights.items()}
