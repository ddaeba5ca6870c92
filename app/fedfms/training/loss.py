"""The training loss: Dice plus binary cross-entropy on probabilities, per structure."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor


class SegmentationLoss:
    """Mean over annotated (image, structure) pairs of Dice loss + cross-entropy (FedFMS, section 2.3).

    A structure that a site has not annotated in an image contributes nothing.
    """

    def __init__(self) -> None:
        # MONAI takes seconds to import, and not every task of a site trains.
        from monai.losses import DiceLoss

        self._dice = DiceLoss(sigmoid=True, reduction="none")

    def __call__(self, logits: Tensor, masks: Tensor, annotated: Tensor) -> Tensor:
        """Compute the *sum* over pairs, so that accumulated parts of a batch add up.

        Args:
            logits: ``(batch, structures, rows, columns)``.
            masks: Of the same shape, in 0/1.
            annotated: ``(batch, structures)`` bool.

        Returns:
            A scalar: the sum over annotated pairs; divide by their number for the mean.
        """
        logits = logits.float()
        dice = self._dice(logits, masks).flatten(1)
        entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(dim=(2, 3))
        return cast(Tensor, ((dice + entropy) * annotated).sum())
