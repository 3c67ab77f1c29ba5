"""Deep supervision: classifiers beside the network's own, in training only.

Shape suffixes: B batch, C channels, H height, W width, K classes; a list ``x_LBCHW`` holds one tensor per level.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmseg_cli.errors import MmsegError
from mmseg_cli.models.unet import SegmentationHead, SegmentationNetwork, initialise_classifier


class DeepSupervision(nn.Module):
    """A segmentation network in training, with a classifier at every decoder level ("deep supervision").

    After deeply-supervised nets (arXiv 1409.5185): the coarser levels of the decoder are asked for the classes too, so
    that their gradient does not come through the finer levels alone. In evaluation it is the network itself.

    Attributes:
        network: the segmentation network, unchanged: what is saved and used afterwards.
        auxiliary: one head per decoder level but the finest, ``level1`` onwards; initialised as the network's.

    Raises:
        MmsegError: the decoder has no such level.
    """

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network
        self.auxiliary = nn.ModuleDict()
        channels = network.body.channels[1:-1]  # the last is the encoder's bottom
        if not channels:
            what = f"the decoder of a network of {len(network.body.channels)} levels has no coarser level to read"
            raise MmsegError("deep_supervision", what, "use 3 levels or more, or set it to 0")
        reference = network.head.classifier.weight
        for level, in_channels in enumerate(channels, start=1):
            head = SegmentationHead(in_channels, network.head.classifier.out_channels).to(reference)
            initialise_classifier(head.classifier)
            self.auxiliary[f"level{level}"] = head

    def forward(self, x_BCHW: Tensor) -> Tensor | list[Tensor]:
        """Map images to ``logits_BKHW`` of their size; in training to a list of logits, each of its feature's size.

        The list begins with the network's own, and goes on with the auxiliary heads', fine to coarse.
        """
        if not self.training:
            logits_BKHW: Tensor = self.network(x_BCHW)
            return logits_BKHW
        features_LBCHW = self.network.body(x_BCHW)
        coarser_LBCHW = features_LBCHW[1:-1]
        return [
            self.network.head(features_LBCHW),
            *(head([feature_BCHW]) for head, feature_BCHW in zip(self.auxiliary.values(), coarser_LBCHW, strict=True)),
        ]
