"""Ratios of processor time on one thread: what a cache saves, what the library costs, what other scripts do.

    python scripts/bench_ratios.py [--rounds 5] [--pairs 4]

A small UNet on 32 x 32 latents, with an autoencoder that costs less beside it than SDXL's does at 1024 pixels (0.72 of
a forward pass there). Two steps are timed in turn, A B A B …, each by the process's own processor time; a ratio is the
median over the rounds. The stand-ins for other scripts are written from what those do in a step: the same passes, the
same order, the same reading of numbers; precision and offloading are left out, which a processor would not show.
"""

import argparse
import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import bench_counters as counters
import diffusers
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils.flop_counter import FlopCounterMode

from diffalign import step
from diffalign.backbones import SDXL
from diffalign.dataset import Visit
from diffalign.diffusion import VP
from diffalign.objectives import DPO
from diffalign.passes import Passes
from diffalign.policy import Policy
from diffalign.run import Adaptation, Frozen, Full, LoRA, Run

LATENT, SIDE = (4, 32, 32), 128
UNET = counters.SDXL_UNET | {
    **{"block_out_channels": (32, 64, 128), "attention_head_dim": (2, 4, 8), "cross_attention_dim": 64},
    **{"transformer_layers_per_block": (1, 1, 2), "addition_time_embed_dim": 8},
    "projection_class_embeddings_input_dim": 80,
}
TEXTS = {"prompt_embeds": (16, 64), "pooled": (32,)}


class World:
    """A small model with its autoencoder, and batches that are the same for everybody."""

    def __init__(self, pairs: int) -> None:
        torch.manual_seed(0)
        self.pairs, self.process = pairs, VP()
        self.vae = diffusers.AutoencoderKL(
            block_out_channels=(32, 64, 64), down_block_types=("DownEncoderBlock2D",) * 3, layers_per_block=1,
            up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=8,
        ).requires_grad_(False)  # fmt: skip
        self.text = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2).eval()
        self.unet, self.other = (diffusers.UNet2DConditionModel(**UNET) for _ in range(2))
        self.other.load_state_dict(self.unet.state_dict())
        self.other.requires_grad_(False)
        self.pixels = torch.rand(2 * pairs, 3, SIDE, SIDE) * 2 - 1
        self.words = torch.randn(2 * pairs, *TEXTS["prompt_embeds"])
        self.told = {"text_embeds": torch.randn(2 * pairs, 32), "time_ids": torch.full((2 * pairs, 6), 128.0)}
        self.rows = {n: torch.randn(2 * pairs, *shape) for n, shape in {"latents": LATENT, **TEXTS}.items()}

    def ask(self, unet: nn.Module, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        return unet(x, t, encoder_hidden_states=words, added_cond_kwargs=self.told, return_dict=False)[0]

    def encode(self) -> Tensor:
        with torch.no_grad():
            return self.vae.encode(self.pixels).latent_dist.sample() * 0.18215

    def noisy(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, noise, t), one time and one noise a pair."""
        eps = torch.randn(self.pairs, *LATENT).repeat(2, 1, 1, 1)
        t = torch.randint(0, 1000, (self.pairs,)).repeat(2)
        return self.process.noise(x0, eps, t).x_t, eps, t


class Ready(counters.Blank):
    """The material of a run that lies in memory."""

    def __init__(self, world: World) -> None:
        super().__init__(LATENT, TEXTS, {})
        self.world = world

    def x0(self, visits: list[Visit]) -> Tensor:
        return self.world.rows["latents"].clone()

    def rows(self, texts: list[str]) -> dict[str, Tensor]:
        return {name: self.world.rows[name][: len(texts)].clone() for name in TEXTS}

    def sized(self, visits: list[Visit]) -> dict[str, Tensor]:
        return {"time_ids": torch.full((2 * len(visits), 6), 128.0)}


def ours(world: World, adaptation: Adaptation, *, bank: bool, encodes: bool = False) -> Callable[[], None]:
    """The library's step: draws, caches, passes, objective, metrics, clipping and AdamW."""
    backbone = SDXL.__new__(SDXL)
    backbone.process, backbone.denoiser = world.process, diffusers.UNet2DConditionModel(**UNET)
    backbone.denoiser.load_state_dict(world.unet.state_dict())
    policy = Policy(backbone, adaptation, 0, reference=None if bank else Frozen())
    run = Run("none", DPO(beta=5000.0), policy=adaptation, precision="float32", batch=world.pairs)
    data, material = SimpleNamespace(kind="pair"), Ready(world)
    known, cpu = counters.Known() if bank else None, torch.device("cpu")
    passes = Passes(run, data, backbone, world.process, material, policy, backbone.denoiser, cpu, known)
    return stepper(world, passes, encodes)


def stepper(world: World, passes: Passes, encodes: bool) -> Callable[[], None]:
    weights = list(passes.policy.parameters.values())
    optimizer, number = torch.optim.AdamW(weights, lr=1e-6), iter(range(10**9))
    bad = torch.full((2,), -1)

    def once() -> None:
        if encodes:
            world.rows["latents"] = world.encode()
        visits = [dataclasses.replace(v, draw=next(number)) for v in counters.groups(world.pairs)]
        step.gradients(passes, [visits], step.Share(float(world.pairs), None, 1), contextlib.nullcontext, 1, bad)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once


def bare(world: World) -> Callable[[], None]:
    """Forward, loss, backward, clipping and AdamW on tensors that lie ready: what no training can leave out."""
    optimizer = torch.optim.AdamW(world.unet.parameters(), lr=1e-6)
    x_t, eps, t = world.noisy(world.rows["latents"])
    reference = torch.ones(2 * world.pairs)

    def once() -> None:
        error = (world.ask(world.unet, x_t, t, world.rows["prompt_embeds"]) - eps).square().flatten(1).mean(1)
        chosen, rejected = (error - reference).chunk(2)
        (-logsigmoid(-2500.0 * (chosen - rejected))).mean().backward()
        torch.nn.utils.clip_grad_norm_(world.unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once


def script(world: World, *, reference: str, checkpointing: bool, lora: bool, reads: int) -> Callable[[], None]:
    """A step of the usual scripts: autoencoder and text encoder in the loop, both sides passed anew every time.

    reference: "copy" (a second network), "off" (adapters off, by walking all modules) or "none". reads: how many
    numbers a micro-step brings to the host.
    """
    unet = world.unet
    if lora:
        backbone = SDXL.__new__(SDXL)
        backbone.process, backbone.denoiser = world.process, diffusers.UNet2DConditionModel(**UNET)
        unet = Policy(backbone, LoRA(rank=8, alpha=8.0), 0, reference=None).denoiser
        unet._hf_peft_config_loaded = True  # as `add_adapter` sets it, for diffusers' own toggle
    weights = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-6)

    def past(x_t: Tensor, t: Tensor, words: Tensor, eps: Tensor) -> Tensor | float:
        if reference == "none":
            return 0.0
        if reference == "off":
            unet.disable_adapters()
        with torch.no_grad():
            said = world.ask(world.other if reference == "copy" else unet, x_t, t, words)
        if reference == "off":
            unet.enable_adapters()
        return (said - eps).square().flatten(1).mean(1)

    def once() -> None:
        unet.enable_gradient_checkpointing() if checkpointing else unet.disable_gradient_checkpointing()
        unet.train()
        x_t, eps, t = world.noisy(world.encode())
        with torch.no_grad():
            words = world.text(world.words)
        new = (world.ask(unet, x_t, t, words) - eps).square().flatten(1).mean(1)
        chosen, rejected = (new - past(x_t, t, words, eps)).chunk(2)
        loss = (-logsigmoid(-2500.0 * (chosen - rejected))).mean()
        if reference == "none":  # MaPO's likelihood term beside the ratio
            loss = loss + chosen.mean()
        for _ in range(reads):
            float(loss.detach())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once


def ratio(rounds: int, a: Callable[[], None], b: Callable[[], None]) -> tuple[float, float, float]:
    """(median of A / B, lowest, highest); A and B in turn, after one of each that does not count."""
    a(), b()
    found = []
    for _ in range(rounds):
        first, second, third = seconds(a), seconds(b), seconds(a)
        found.append(0.5 * (first + third) / second)
    return statistics.median(found), min(found), max(found)


def seconds(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def flops(call: Callable[[], None]) -> float:
    with FlopCounterMode(display=False) as mode:
        call()
    return mode.get_total_flops()


def main(rounds: int, pairs: int) -> None:
    world = World(pairs)
    full, cached = Full(), ours(world, Full(), bank=True)
    lora = ours(world, LoRA(rank=8, alpha=8.0), bank=True)
    scripts = {
        "Salesforce full (copy, checkpointing, 9 reads)": (9, "copy", True, False, cached),
        "diffusers LoRA (adapters off, 4 reads)": (4, "off", False, True, lora),
        "MaPO full (no reference, checkpointing, 6 reads)": (6, "none", True, False, cached),
    }
    rows = [
        ("live reference / bank", ours(world, full, bank=False), cached, ">= 1.25"),
        ("autoencoder in the loop / cached latents", ours(world, full, bank=True, encodes=True), cached, ">= 1.15"),
        ("the library / a bare loop", cached, bare(world), "<= 1.05"),
    ]
    for name, (reads, reference, checkpointing, adapters, base) in scripts.items():
        step_ = script(world, reference=reference, checkpointing=checkpointing, lora=adapters, reads=reads)
        rows.append((f"{name} / ours", step_, base, ""))
    print(f"{'processor time, one thread':<52} {'median':>7} {'range':>13} {'by FLOP':>8}  must be")
    for what, a, b, bound in rows:
        middle, low, high = ratio(rounds, a, b)
        print(f"{what:<52} {middle:7.3f} {low:6.2f}-{high:5.2f} {flops(a) / flops(b):8.3f}  {bound}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=4)
    torch.set_num_threads(1)
    main(**vars(parser.parse_args()))
