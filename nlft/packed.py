"""Whether a model can read packed rows: transformers builds block-diagonal attention from positions, and some bases do
not take part."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from nlft.anatomy import root_of
from nlft.capture import inference
from nlft.data.batch import collate
from nlft.data.packing import pack
from nlft.data.template import Encoded
from nlft.errors import NlftError
from nlft.frozen_prefix import TOLERANCE

TOKENS = 32
"""Of a row that is read for the check."""
HINT = "Leave train.packing away."


def check_packing(model: Any, rows: Sequence[Encoded], pad_id: int) -> None:
    """Reads the beginnings of a few rows packed and apart, and refuses a model whose logits are not the same.

    There are six rows, each of three twice, in at least two lines, and at least two rows share a line: some kinds of
    attention know packed rows in a single line alone.

    Raises:
        NlftError: rows that share a line would read each other, or know wrong places.
    """
    root = root_of(model)
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        raise NlftError("train.packing: virtual tokens stand in front of a line and not of every row in it.", HINT)
    if "position_ids" not in inspect.signature(root.forward).parameters:
        raise NlftError(f"train.packing: {type(root).__name__} takes no positions, which tell packed rows apart.", HINT)
    cut = sorted((Encoded(row.ids[:TOKENS], row.labels[:TOKENS], 0) for row in rows), key=lambda row: len(row.ids))
    few = [cut[0], cut[len(cut) // 2], cut[-1]] * 2
    device = next(root.parameters()).device
    found = []
    with inference(root):
        for batch in (collate(few, pad_id), pack(few, pad_id, width=2 * len(cut[-1].ids))):
            logits = root(**batch.to(device).inputs(), use_cache=False).logits
            places = zip(few, batch.places, strict=True)
            found.append(torch.cat([logits[line, at : at + len(row.ids)] for row, (line, at) in places]).float())
    apart, together = found
    error = float((apart - together).abs().max() / apart.abs().max())
    if not error <= TOLERANCE[root.dtype]:
        raise NlftError(
            f"train.packing: {type(root).__name__} reads rows that share a line otherwise than rows in lines of their"
            f" own (logits differ by {error:.1e} of the largest).",
            HINT,
        )
