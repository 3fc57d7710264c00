"""A generator learns from another one: a flow of the guided predictions of a UNet of noise, in the same latents."""

from pathlib import Path

import torch
from shapes_export import pipeline
from shapes_text import told
from torch import Tensor

# Latents lie within; a guided prediction at almost pure noise does not, for its error is divided by sqrt(alpha).
BOUND = 4.0


def quickly() -> torch.autocast:
    """Within: matrices are multiplied in bfloat16 where the CPU does (elsewhere it is many times slower)."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu.get_capabilities().get("avx512_bf16", False))


class Teacher:
    """x_0, noise, t, words -> x_t of the flow and (x_t - x_0^) / t, where x_0^ is an SDXL pipeline's guided prediction.

    A state of the flow is one of the teacher's process up to its scale, x_t / sqrt((1 - t)^2 + t^2), at the step with
    the same ratio of signal to noise.
    """

    def __init__(self, folder: Path, guidance: float) -> None:
        self.pipe, self.guidance = pipeline(folder), guidance
        self.pipe.unet.to(memory_format=torch.channels_last)
        alpha = self.pipe.scheduler.alphas_cumprod.double()
        self.steps = torch.arange(len(alpha), dtype=torch.float64)
        self.ratios = (alpha / (1 - alpha)).log()

    def step(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Times of the flow, (n,) in (0, 1) -> steps of the teacher, between its own by interpolation, and alphas."""
        wanted = (2 * ((1 - t.double()) / t.double()).log()).clamp(self.ratios[-1], self.ratios[0])
        after = torch.searchsorted(-self.ratios, -wanted).clamp(1, len(self.ratios) - 1)
        share = (self.ratios[after - 1] - wanted) / (self.ratios[after - 1] - self.ratios[after])
        return (self.steps[after - 1] + share).float(), wanted.sigmoid().float()

    @torch.no_grad()
    def __call__(self, latents: Tensor, noise: Tensor, t: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """(n, channels, h, w) twice, (n,), (n, words) -> the state and its velocity, (n, channels, h, w) each."""
        steps, alpha = self.step(t)
        weight, alpha = t.view(-1, 1, 1, 1), alpha.view(-1, 1, 1, 1)
        x_t = (1 - weight) * latents + weight * noise
        scaled = x_t / ((1 - weight).square() + weight.square()).sqrt()
        embeds, added = told(self.pipe, numbers)
        nothing = added | {"text_embeds": torch.zeros_like(added["text_embeds"])}
        both = {name: torch.cat([value, nothing[name]]) for name, value in added.items()}
        words = torch.cat([embeds, torch.zeros_like(embeds)])
        with quickly():
            noises = self.pipe.unet(
                torch.cat([scaled] * 2), steps.repeat(2), encoder_hidden_states=words, added_cond_kwargs=both
            )
        conditional, unconditional = noises.sample.float().chunk(2)
        guided = unconditional + self.guidance * (conditional - unconditional)
        clean = ((scaled - (1 - alpha).sqrt() * guided) / alpha.sqrt()).clamp(-BOUND, BOUND)
        return x_t, (x_t - clean) / weight
