"""Attention with fewer heads: `nn.MultiheadAttention` in a form whose heads can go, and attention written by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepress_host.press.structure import buildable, replace_layer
from edgepress_host.technique import StepFailed

_HEADS = ("num_heads", "n_heads", "nheads", "heads", "nhead", "n_head", "num_attention_heads")
_ROLES = {
    "q": r"(to_?|w_?|lin(ear)?_?|fc_?)?q(uery)?(_?(proj|lin|linear|layer))?",
    "k": r"(to_?|w_?|lin(ear)?_?|fc_?)?k(ey)?(_?(proj|lin|linear|layer))?",
    "v": r"(to_?|w_?|lin(ear)?_?|fc_?)?v(alue)?s?(_?(proj|lin|linear|layer))?",
    "qkv": r"((to_?|w_?|lin(ear)?_?|fc_?)?qkv(_?(proj|lin|linear))?|in_?proj|c_attn)",
    "out": r"(to_?|w_?|lin(ear)?_?|fc_?|c_)?(o|out|output|dense|proj|projection)(_?(proj|lin|linear|layer))?",
}


@buildable
class NarrowAttention(nn.Module):
    """What `nn.MultiheadAttention` computes, with any number of heads: that derives a head's width from the model's.

    `in_proj_bias` (3 · num_heads · head_dim,) belongs to queries, keys and values in this order.
    """

    # nn.TransformerEncoderLayer then keeps off its fused kernel, which knows no such heads.
    _qkv_same_embed_dim = False

    def __init__(
        self, embed_dim: int, kdim: int, vdim: int, num_heads: int, head_dim: int, dropout: float, batch_first: bool
    ) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = embed_dim, kdim, vdim
        self.num_heads, self.head_dim = num_heads, head_dim
        self.dropout, self.batch_first = dropout, batch_first
        inner = num_heads * head_dim
        self.q_proj_weight = nn.Parameter(torch.empty(inner, embed_dim))
        self.k_proj_weight = nn.Parameter(torch.empty(inner, kdim))
        self.v_proj_weight = nn.Parameter(torch.empty(inner, vdim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * inner))
        self.out_proj_weight = nn.Parameter(torch.empty(embed_dim, inner))
        self.out_proj_bias = nn.Parameter(torch.zeros(embed_dim))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as `nn.MultiheadAttention` does, with the same arguments and shapes."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, which is missing")
        batched = query.dim() == 3
        q, k, v = (self._batch_first(part, batched) for part in (query, key, value))
        biases = self.in_proj_bias.chunk(3)
        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        q, k, v = (self._split(functional.linear(*own)) for own in zip((q, k, v), weights, biases, strict=True))
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        for mask in (self._per_head(attn_mask, len(q)), key_padding_mask):
            if mask is not None:
                scores = scores + _additive(mask if mask.dim() != 2 or mask is attn_mask else mask[:, None, None], q)
        shares = torch.softmax(scores, dim=-1)
        mixed = functional.dropout(shares, self.dropout, self.training) @ v
        found = functional.linear(mixed.transpose(1, 2).flatten(2), self.out_proj_weight, self.out_proj_bias)
        if not need_weights:
            return self._as_came(found, batched), None
        seen = shares.mean(dim=1) if average_attn_weights else shares
        return self._as_came(found, batched), seen if batched else seen.squeeze(0)

    def _batch_first(self, part: Tensor, batched: bool) -> Tensor:
        if not batched:
            return part.unsqueeze(0)
        return part if self.batch_first else part.transpose(0, 1)

    def _as_came(self, found: Tensor, batched: bool) -> Tensor:
        if not batched:
            return found.squeeze(0)
        return found if self.batch_first else found.transpose(0, 1)

    def _split(self, x: Tensor) -> Tensor:
        """(N, L, heads · width) → (N, heads, L, width)."""
        return x.reshape(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _per_head(self, mask: Tensor | None, batch: int) -> Tensor | None:
        """Masks of shape (L, S) are for all; (N · heads, L, S) are for each head."""
        return mask if mask is None or mask.dim() == 2 else mask.reshape(batch, -1, *mask.shape[1:])


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def unfused(attention: nn.MultiheadAttention, name: str) -> NarrowAttention:
    """Return the same attention with all its heads, in the form that can lose some. Raises StepFailed."""
    if attention.bias_k is not None or attention.add_zero_attn:
        raise StepFailed(f"{name}: attention with bias_k or add_zero_attn cannot lose heads; skip it under layers")
    made = NarrowAttention(
        attention.embed_dim,
        attention.kdim or attention.embed_dim,
        attention.vdim or attention.embed_dim,
        attention.num_heads,
        attention.head_dim,
        attention.dropout,
        attention.batch_first,
    )
    parts = (
        attention.in_proj_weight.chunk(3)
        if attention.in_proj_weight is not None
        else (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    )
    with torch.no_grad():
        for own, part in zip((made.q_proj_weight, made.k_proj_weight, made.v_proj_weight), parts, strict=True):
            own.copy_(part)
        made.out_proj_weight.copy_(attention.out_proj.weight)
        if attention.in_proj_bias is not None:
            made.in_proj_bias.copy_(attention.in_proj_bias)
            made.out_proj_bias.copy_(attention.out_proj.bias)
    return made.train(attention.training)


class Handwritten(msgspec.Struct, frozen=True):
    """An attention of the user's own: dense layers for queries, keys, values (or all in one) and for the output."""

    module: nn.Module
    heads_name: str
    inputs: tuple[nn.Linear, ...]
    output: nn.Linear

    @property
    def heads(self) -> int:
        """How many heads it has now."""
        return int(getattr(self.module, self.heads_name))

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.output.in_features


Attention = NarrowAttention | Handwritten


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """Modules with attention heads by name, whatever their form; what lies inside one is not listed again."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        if isinstance(module, nn.MultiheadAttention | NarrowAttention) or _parts(module).keys() & {"q", "qkv"}:
            found[name] = module
    return found


def opened(model: nn.Module, name: str) -> Attention:
    """Return an attention in a form whose heads can go; changes `model`. Raises StepFailed for one that has none."""
    module = model.get_submodule(name)
    if isinstance(module, nn.MultiheadAttention):
        module = unfused(module, name)
        replace_layer(model, name, module)
    if isinstance(module, NarrowAttention):
        return module
    parts = _parts(module)
    inputs = (parts["qkv"],) if "qkv" in parts else tuple(parts[role] for role in "qkv" if role in parts)
    widths = {layer.out_features // (3 if "qkv" in parts else 1) for layer in inputs}
    known = f"{name} ({type(module).__name__})"
    if len(inputs) == 2 or "out" not in parts:
        missing = next(role for role in ("k", "v", "out") if role not in parts)
        raise StepFailed(f"{known}: no dense layer for {missing!r} found beside its others; skip it under layers")
    made = Handwritten(module, _heads_name(module), inputs, parts["out"])
    if widths != {made.inner} or made.inner % made.heads:
        raise StepFailed(f"{known}: its heads share keys or have several widths, and cannot go; skip it under layers")
    return made


def narrow(attention: Attention, kept: Sequence[int], *, others: bool, mixed: bool) -> None:
    """Keep these heads, in place.

    `others` gives new values to all plain attributes of a handwritten module that held the width of all its heads;
    `mixed` is for one layer of queries, keys and values that come head by head.
    """
    if isinstance(attention, NarrowAttention):
        width, old = attention.head_dim, attention.num_heads * attention.head_dim
        rows = _spread(kept, width)
        for own in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            setattr(attention, own, nn.Parameter(getattr(attention, own).detach()[rows]))
        three = torch.cat([rows + part * old for part in range(3)])
        attention.in_proj_bias = nn.Parameter(attention.in_proj_bias.detach()[three])
        attention.out_proj_weight = nn.Parameter(attention.out_proj_weight.detach()[:, rows])
        attention.num_heads = len(kept)
        return
    old = attention.inner
    rows = _spread(kept, old // attention.heads)
    for layer in attention.inputs:
        if len(attention.inputs) == 3:
            keep_rows(layer, rows)
        elif mixed:
            keep_rows(layer, _spread(kept, 3 * old // attention.heads))
        else:
            keep_rows(layer, torch.cat([rows + part * old for part in range(3)]))
    keep_columns(attention.output, rows)
    setattr(attention.module, attention.heads_name, len(kept))
    if others:
        for own, value in list(vars(attention.module).items()):
            if type(value) is int and value == old:
                setattr(attention.module, own, len(rows))


def silence(attention: Attention, kept: Sequence[int]) -> None:
    """Let all other heads say nothing, in place: what a model without them has to compute."""
    weight, heads = _output(attention)
    mask = torch.zeros(heads)
    mask[list(kept)] = 1
    with torch.no_grad():
        weight.mul_(mask.repeat_interleave(weight.shape[1] // heads))


def head_scores(attention: Attention, power: int) -> Tensor:
    """Norm of order `power` of each head's rows (queries, keys, values) and columns (output); shape (heads,)."""
    output, heads = _output(attention)
    parts = [output.detach().T.reshape(heads, -1)]
    if isinstance(attention, NarrowAttention):
        weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        parts += [weight.detach().reshape(heads, -1) for weight in weights]
    elif len(attention.inputs) == 3:
        # The rows of one layer for all three may come in any order; its heads go by their output alone.
        parts += [layer.weight.detach().reshape(heads, -1) for layer in attention.inputs]
    return torch.cat(parts, dim=1).abs().pow(power).sum(dim=1).pow(1 / power)


def head_gates(attention: Attention) -> Tensor:
    """Gradient of the loss by a factor before each head, from that of the output's weights; shape (heads,)."""
    weight, heads = _output(attention)
    assert weight.grad is not None
    return (weight.grad * weight.detach()).sum(dim=0).reshape(heads, -1).sum(dim=1)


def heads_of(attention: Attention) -> int:
    """How many heads there are now."""
    return _output(attention)[1]


def keep_rows(layer: nn.Linear, rows: Tensor) -> None:
    """Keep these outputs of a dense layer, in place."""
    layer.weight = nn.Parameter(layer.weight.detach()[rows])
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[rows])
    layer.out_features = len(rows)


def keep_columns(layer: nn.Linear, columns: Tensor) -> None:
    """Keep these inputs of a dense layer, in place."""
    layer.weight = nn.Parameter(layer.weight.detach()[:, columns])
    layer.in_features = len(columns)


def _output(attention: Attention) -> tuple[Tensor, int]:
    if isinstance(attention, NarrowAttention):
        return attention.out_proj_weight, attention.num_heads
    return attention.output.weight, attention.heads


def _spread(heads: Sequence[int], width: int) -> Tensor:
    """Return the features of these heads, in order."""
    return torch.cat([torch.arange(head * width, (head + 1) * width) for head in heads])


def _heads_name(module: nn.Module) -> str:
    return next((name for name in _HEADS if type(getattr(module, name, None)) is int), "")


def _parts(module: nn.Module) -> dict[str, nn.Linear]:
    """Dense layers of a module that says how many heads it has, by their role in attention."""
    if not _heads_name(module):
        return {}
    return {
        role: layer
        for name, layer in _dense_children(module)
        for role, pattern in _ROLES.items()
        if re.fullmatch(pattern, name.lower())
    }


def _dense_children(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, child in module.named_children():
        inside = child[0] if isinstance(child, nn.Sequential) and len(child) else child
        if isinstance(inside, nn.Linear):
            yield name, inside
