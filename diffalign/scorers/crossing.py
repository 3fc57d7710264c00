"""The part of MPS in which image tokens look at words: cross-attention and self-attention, each beside a SwiGLU."""

import torch
from torch import nn
from torch.nn import functional

HEAD, WIDER = 64, 4


class _Gamma(nn.Module):
    """Layer norm with a factor and without an offset."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.gamma)


class _Gate(nn.Module):
    """SwiGLU: the first half of the features, by silu of the second."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gate = x.chunk(2, -1)
        return functional.silu(gate) * x


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heard: torch.Tensor | None) -> torch.Tensor:
    """softmax(q · k / √d) v of queries (n, tokens, heads, d) and one head of keys, (n, tokens, heads · d)."""
    logits = torch.einsum("nihd,njd->nhij", q * HEAD**-0.5, k)
    if heard is not None:
        logits = logits.masked_fill(~heard[:, None, None], -torch.inf)
    return torch.einsum("nhij,njd->nihd", logits.softmax(-1), v).flatten(2)


class _Look(nn.Module):
    """x + what it finds in the words + SwiGLU(x), both of the normed x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _Gamma(width)
        self.to_q, self.to_out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * HEAD, bias=False)
        inner = WIDER * width
        self.ff = nn.Sequential(nn.Linear(width, 2 * inner, bias=False), _Gate(), nn.Linear(inner, width, bias=False))

    def forward(self, x: torch.Tensor, words: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        k, v = self.to_kv(words).chunk(2, -1)
        return x + self.to_out(_attention(self.to_q(y).unflatten(-1, (-1, HEAD)), k, v, heard)) + self.ff(y)


class _Think(nn.Module):
    """x + self-attention (rotary positions) + SwiGLU, both of the normed x, their inputs from one matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, inner = _Gamma(width), WIDER * width
        self.parts = (width, HEAD, HEAD, 2 * inner)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_out = nn.Sequential(_Gate(), nn.Linear(inner, width, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v, ff = self.fused_attn_ff_proj(self.norm(x)).split(self.parts, -1)
        q, k = _turned(q.unflatten(-1, (-1, HEAD)).transpose(1, 2)).transpose(1, 2), _turned(k)
        return x + self.attn_out(_attention(q, k, v, None)) + self.ff_out(ff)


def _turned(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions: x (…, tokens, d) turned by position · 10000^(-2i/d) in the planes (i, i + d/2)."""
    half = x.shape[-1] // 2
    speed = 10000 ** (-torch.arange(half, device=x.device).float() / half)
    angle = torch.arange(x.shape[-2], device=x.device).float()[:, None] * speed
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class _Inner(nn.Module):
    """A module under the name that the checkpoint gives it."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn


class Crossing(nn.Module):
    """Image tokens (n, tokens, width) that looked at words (n, words, width), of which the `heard` (n, words) count."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        both = ((_Inner(_Look(width)), _Inner(_Think(width))) for _ in range(layers))
        self.layers = nn.ModuleList(nn.ModuleList(two) for two in both)

    def forward(self, x: torch.Tensor, words: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
        """The image tokens, (n, tokens, width)."""
        for look, think in self.layers:
            x = think.fn(look.fn(x, words, heard))
        return x
