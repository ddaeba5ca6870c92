"""How the messages of `fedfms.exchange.messages` are put into FLARE's Shareable, and what an error reply contains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from safetensors.torch import save
from torch import Tensor

from fedfms.errors import CATALOGUE
from fedfms.exchange.messages import message_digest

MESSAGE = "fedfms"
ERRORS = "fedfms_errors"

RETURN_CODES = frozenset(value for name, value in vars(ReturnCode).items() if name.isupper() and isinstance(value, str))


def register_types() -> None:
    """Let FOBS carry FLARE's own types, and torch tensors as safetensors (no numpy, no pickle); harmless when repeated.

    FOBS invents a way of its own for a type that it meets before this, loses values of that type, and stays with it.
    """
    flare_decomposers.register()
    fobs.register(TensorDecomposer)


def to_shareable(message: Mapping[str, Any]) -> Shareable:
    """An OK Shareable whose only content is the message."""
    shareable = make_reply(ReturnCode.OK)
    shareable[MESSAGE] = dict(message)
    return shareable


def round_of(message: object) -> int | None:
    """The round that a message names, whoever wrote it; None where it names none."""
    number = message.get("round") if isinstance(message, Mapping) else None
    return number if type(number) is int else None


def error_reply(return_code: str, ids: Iterable[str]) -> Shareable:
    """A reply of a return code and error ids, both from closed lists; everything else is dropped."""
    known = return_code in RETURN_CODES and return_code != ReturnCode.OK
    reply = make_reply(return_code if known else ReturnCode.EXECUTION_EXCEPTION)
    # `type is str` because an equal subclass instance could carry attributes.
    reply.set_header(ERRORS, [name for name in dict.fromkeys(ids) if type(name) is str and name in CATALOGUE])
    return reply


def error_ids(reply: Shareable) -> tuple[str, ...]:
    """The error ids of the catalogue that a reply names; anything else there is ignored."""
    found = reply.get_header(ERRORS)
    if not isinstance(found, list | tuple):
        return ()
    return tuple(dict.fromkeys(name for name in found if isinstance(name, str) and name in CATALOGUE))


def reply_content(reply: Shareable) -> dict[str, Any]:
    """What a reply says, without FLARE's own headers: the message, or return code and error ids.

    Raises:
        TypeError: when its message is not a mapping.
    """
    code = reply.get_return_code()
    if code == ReturnCode.OK:
        message = reply.get(MESSAGE)
        if not isinstance(message, Mapping):
            raise TypeError(f"not a message but {type(message).__name__}")
        return dict(message)
    return {"return_code": code if code in RETURN_CODES else "", "errors": list(error_ids(reply))}


def receipt(reply: Shareable) -> dict[str, Any]:
    """``message_sha256`` and ``bytes_up`` of a reply as it arrived, for the ledger; None when it is not measurable.

    A site's egress record holds the same two of what it sent.
    """
    try:
        content = reply_content(reply)
        return {"message_sha256": message_digest(content), "bytes_up": serialized_bytes(content)}
    except Exception:  # noqa: BLE001 - the gate reports what is wrong with it
        return {"message_sha256": None, "bytes_up": None}


def serialized_bytes(message: Mapping[str, Any]) -> int:
    """Bytes of a message as FOBS writes it: each tensor as safetensors, the rest as msgpack.

    One tensor at a time is serialized, so that measuring a large message needs little memory. Right to a few
    bytes per tensor (the length prefixes).
    """
    register_types()
    empty = torch.empty(0)
    total = 0

    def emptied(value: Any) -> Any:
        nonlocal total
        if isinstance(value, Tensor):
            total += len(save({"t": value.contiguous()})) - len(save({"t": empty}))
            return empty.clone()
        if isinstance(value, Mapping):
            return {key: emptied(item) for key, item in value.items()}
        return value

    shell = emptied(message)
    return total + len(fobs.dumps(to_shareable(shell)))
