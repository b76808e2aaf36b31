"""Merge calls of a network into one with all of their rows, and take its output apart again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

# Prompts of unequal lengths are filled up where a mask tells the network: [B, tokens, width], [B, tokens].
TEXT, MASK = "encoder_hidden_states", "encoder_hidden_states_mask"


class Call(NamedTuple):
    """The arguments of one call of a network."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Its number of rows, as its first input says: a tensor [B, ...], or a list of B tensors."""
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, Tensor) and value.dim() >= 3:
                return len(value)
            if isinstance(value, list) and value and isinstance(value[0], Tensor):
                return len(value)
        raise ValueError("The network is called without a batch.")


def groups(calls: Sequence[Call]) -> list[list[int]]:
    """Which calls can be merged: lists of their positions, in order."""
    found: dict[Any, list[int]] = {}
    for i, call in enumerate(calls):
        found.setdefault(_signature(call), []).append(i)
    return [part for group in found.values() for part in _with_equal_constants(group, calls)]


def merge(calls: Sequence[Call]) -> Call:
    """One call with the rows of all, which must be of one group."""
    if len(calls) == 1:
        return calls[0]
    calls = _filled_up(calls)
    rows = [call.rows for call in calls]
    args = tuple(_merged(values, rows) for values in zip(*(call.args for call in calls), strict=True))
    kwargs = {name: _merged([call.kwargs[name] for call in calls], rows) for name in calls[0].kwargs}
    return Call(args, kwargs)


def split(output: Any, rows: Sequence[int]) -> list[Any]:
    """The output of a merged call as those of its calls with so many rows each."""
    if len(rows) == 1:
        return [output]
    if isinstance(output, Tensor):
        return list(output.split(list(rows)))
    if isinstance(output, list) and len(output) == sum(rows):
        ends = torch.tensor(rows).cumsum(0).tolist()
        return [output[end - count : end] for end, count in zip(ends, rows, strict=True)]
    if isinstance(output, (tuple, list)):
        parts = [split(each, rows) for each in output]
        return [type(output)(each) for each in zip(*parts, strict=True)]
    if isinstance(output, Mapping):  # diffusers' outputs are dataclasses and mappings in one
        names = list(output)
        parts = [split(output[name], rows) for name in names]
        return [type(output)(**dict(zip(names, each, strict=True))) for each in zip(*parts, strict=True)]
    return [output] * len(rows)


def _signature(call: Call) -> Any:
    rows, free = call.rows, {TEXT, MASK} if MASK in call.kwargs else set()

    def of(value: Any, name: str = "") -> Any:
        if name == MASK and name in free:
            return "mask"
        if isinstance(value, Tensor):
            if value.dim() == 0:
                return "number", value.dtype
            if value.dim() == 1 and len(value) in (1, rows):
                return "row", value.dtype
            if name == TEXT and name in free:
                return "text", value.shape[2:], value.dtype
            kind = ("rows", *value.shape[1:]) if len(value) == rows else ("constant", *value.shape)
            return kind, value.dtype
        if isinstance(value, list) and len(value) == rows:
            return "list", None if not value or isinstance(value[0], Tensor) else of(value[0])
        if isinstance(value, Mapping):
            return tuple((key, of(each)) for key, each in sorted(value.items()))
        if isinstance(value, (tuple, list)):
            return tuple(of(each) for each in value)
        return repr(value)

    return tuple(map(of, call.args)), tuple((key, of(each, key)) for key, each in call.kwargs.items())


def _with_equal_constants(group: Sequence[int], calls: Sequence[Call]) -> list[list[int]]:
    """Parts of a group in which the tensors without rows, such as positions, are the same."""
    parts: list[tuple[list[Tensor], list[int]]] = []
    for i in group:
        rows = calls[i].rows
        values = (*calls[i].args, *calls[i].kwargs.values())
        own = [v for v in values if isinstance(v, Tensor) and v.dim() > 1 and len(v) != rows]
        for constants, part in parts:
            if all(map(torch.equal, constants, own)):
                part.append(i)
                break
        else:
            parts.append((own, [i]))
    return [part for _, part in parts]


def _filled_up(calls: Sequence[Call]) -> Sequence[Call]:
    """The calls with prompts of one length, and masks where lengths differ."""
    if MASK not in calls[0].kwargs:
        return calls
    texts, masks = ([call.kwargs[name] for call in calls] for name in (TEXT, MASK))
    longest = max(text.shape[1] for text in texts)
    if all(mask is None and text.shape[1] == longest for text, mask in zip(texts, masks, strict=True)):
        return calls
    filled = []
    for call, text, mask in zip(calls, texts, masks, strict=True):
        lacking = longest - text.shape[1]
        full = (
            torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if mask is None else mask.bool()
        )
        longer = {TEXT: pad(text, (0, 0, 0, lacking)), MASK: pad(full, (0, lacking))}
        filled.append(Call(call.args, {**call.kwargs, **longer}))
    return filled


def _merged(values: Sequence[Any], rows: Sequence[int]) -> Any:
    """One argument of the merged call."""
    first = values[0]
    if isinstance(first, Tensor):
        if first.dim() == 0 or (first.dim() == 1 and len(first) in (1, rows[0])):
            return torch.cat([value.expand(count) for value, count in zip(values, rows, strict=True)])
        return torch.cat(list(values)) if len(first) == rows[0] else first
    if isinstance(first, list) and len(first) == rows[0]:
        return [each for value in values for each in value]
    if isinstance(first, Mapping):
        return {key: _merged([value[key] for value in values], rows) for key in first}
    return first
