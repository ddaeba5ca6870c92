"""Does a received model look trained? Signs of weights that were built to read images out of updates.

Source of the facts: Sami, Sen, Roy-Chowdhury, Krishnamurthy and Guler, "Gradient Inversion Attacks on
Parameter-Efficient Fine-Tuning" (PEFTLeak), CVPR 2025, arXiv 2506.04453. A malicious server there

- turns the frozen layers into a pipe: attention and MLP are zeroed or made the identity, so that patch embeddings reach
  the adapters unchanged;
- gives all rows of an adapter's first layer the same direction, so that every neuron measures the same thing;
- gives the neurons a staircase of biases, so that the patches of a batch fall between different steps; the difference
  of two neighbouring neurons' gradients then is one patch of one image.

No code of the paper is used. What is looked for here are these signs, with wide margins: in real training states
(LiteMedSAM, five rounds on brain images) the closest two rows have a cosine of 0.36, 98 % of a matrix's energy is off
its diagonal, and no tensor's root mean square grows by a tenth or by more than 0.02. A server that knows these checks
can stay below them; they raise the price of the attack and prove nothing. What holds without any statistics: a site
derives the state of round 0 itself and takes only backbones that it has named by digest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedfms.errors import BACKBONE_IMPLAUSIBLE, STATE_IMPLAUSIBLE, ErrorKind, FedfmsError, Problem

# Rows of an adapter's first layer that point the same way as another row, and the share of them that is too many.
_TWIN_COSINE = 0.95
_TWIN_SHARE = 0.25
# A staircase by chance: one in 8! for the fewest steps that are looked at.
_FEWEST_STEPS = 8
# A tensor's root mean square may grow tenfold between two received states, plus what one that starts at zero needs.
_GROWTH = 10.0
_FROM_ZERO = 0.5
# Share of exact zeros; shares of the energy off a matrix's diagonal, and off the centre of depthwise filters, of which
# LiteMedSAM's own have as little as 0.06.
_ZEROED = 0.9
_OFF_DIAGONAL = 0.5
_OFF_CENTRE = 0.005
_SMALLEST_SIDE = 8


def require_plausible_state(received: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
    """Compare a received state with the one that the site received before.

    Args:
        received: Exchanged tensors by name.
        before: The state received last, or the one of round 0; it has the same names.

    Raises:
        FedfmsError: FMS-X015 for every sign found.
    """
    problems: list[Problem] = []
    for name, tensor in received.items():
        old = before[name]
        found = _signs(tensor)
        problems += _named(STATE_IMPLAUSIBLE, name, found - _signs(old))
        limit = _GROWTH * _rms(old) + _FROM_ZERO
        if _rms(tensor) > limit:
            detail = f"root mean square {_rms(tensor):.4g}, before {_rms(old):.4g}, plausible up to {limit:.4g}"
            problems.append(Problem(STATE_IMPLAUSIBLE, name, detail))
    problems += _adapter_problems(received, before)
    if problems:
        raise FedfmsError(problems)


def require_plausible_backbone(tensors: Mapping[str, Tensor], where: str) -> None:
    """Look for blocks of a backbone that pass their input on unchanged, or nothing of it.

    Args:
        tensors: Of a weight file, by name.
        where: The file, for the error.

    Raises:
        FedfmsError: FMS-M006 for every such tensor.
    """
    problems = [
        problem
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
        for problem in _named(BACKBONE_IMPLAUSIBLE, f"{where}: {name}", _signs(tensor))
    ]
    if problems:
        raise FedfmsError(problems)


def _named(kind: ErrorKind, where: str, found: set[str]) -> list[Problem]:
    return [Problem(kind, where, f"{sign}, which looks untrained or tampered with") for sign in sorted(found)]


def _signs(tensor: Tensor) -> set[str]:
    """``zeroed`` and ``the identity`` for matrices and filters; vectors start at zero or one and may stay so."""
    found: set[str] = set()
    if tensor.ndim < 2 or min(tensor.shape[0], tensor[0].numel()) < _SMALLEST_SIDE:
        return found
    if float((tensor == 0).double().mean()) >= _ZEROED:
        found.add("zeroed")
    elif _is_identity(tensor):
        found.add("the identity")
    return found


def _is_identity(tensor: Tensor) -> bool:
    """Up to a factor, and also on a part of a matrix that is not square; filters look at their centre alone."""
    total = float(tensor.double().square().sum())
    if tensor.ndim == 4:
        tensor = tensor[:, :, tensor.shape[2] // 2, tensor.shape[3] // 2]
    depthwise = tensor.shape[1] == 1
    kept = tensor if depthwise else torch.diagonal(tensor.flatten(1))
    return 1 - float(kept.double().square().sum()) / total < (_OFF_CENTRE if depthwise else _OFF_DIAGONAL)


def _rms(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) / math.sqrt(max(1, tensor.numel()))


def _adapter_problems(received: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> list[Problem]:
    problems = []
    for name, tensor in received.items():
        module, _, leaf = name.rpartition(".down.")
        if not module.rpartition(".")[2].startswith("adapter_"):
            continue
        if leaf == "weight":
            share = _twins(tensor)
            if share >= _TWIN_SHARE > _twins(before[name]):
                detail = f"{share:.0%} of the rows point the same way as another row"
                problems.append(Problem(STATE_IMPLAUSIBLE, name, detail))
        if leaf == "bias" and _is_staircase(tensor) and not _is_staircase(before[name]):
            problems.append(Problem(STATE_IMPLAUSIBLE, name, f"its {tensor.numel()} values are a staircase"))
    return problems


def _twins(weight: Tensor) -> float:
    """Share of the rows that are (nearly) parallel to another one."""
    rows = torch.nn.functional.normalize(weight.double(), dim=1)
    cosines = (rows @ rows.T).abs()
    cosines.fill_diagonal_(0)
    return float((cosines.amax(dim=1) > _TWIN_COSINE).double().mean())


def _is_staircase(bias: Tensor) -> bool:
    if bias.numel() < _FEWEST_STEPS:
        return False
    steps = bias.diff()
    return bool((steps > 0).all() or (steps < 0).all())
