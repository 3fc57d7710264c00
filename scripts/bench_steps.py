"""The steps that `bench_ratios.py` and `bench_device.py` time: the library's own loop, and those of the usual scripts.

Models are built from their configurations with random weights (speed does not depend on values; zeros would be too
easy on a card's power). `Ours` is `Trainer` itself, over material that lies in memory. `Script` is written from what
the published scripts do in a step: the same passes in the same order, precision, offloading, checkpointing and reading
of numbers. Two things are left out, in their favour: their data loaders, and the optimizer's step where they take one
in 128 micro-steps.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import accelerate
import bench_counters
import diffusers
import torch
import transformers
from bench_counters import Known, groups
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from diffalign import attention, optimizers
from diffalign.backbones.hollow import Hollow, configurations, hollow
from diffalign.dataset import Visit
from diffalign.diffusion import VP, Flow
from diffalign.passes import Passes
from diffalign.policy import Policy
from diffalign.run import AdamW, Frozen, Full, Run
from diffalign.trainer import Trainer


def network(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A part of a pipeline with random weights."""
    name = config["_class_name"]
    with torch.device(device):
        if name in diffusers.__dict__:
            found = getattr(diffusers, name).from_config(config)
        else:
            kind = getattr(transformers, name)
            told = {k: v for k, v in config.items() if k not in ("_class_name", "model_type")}
            found = kind(kind.config_class(**told)).eval()
    return nn.Module.to(found, dtype)  # diffusers' own `to` warns of each


@dataclass(frozen=True)
class World:
    """A model by its configurations, and how large its pictures are."""

    model: str
    resolution: int
    device: torch.device

    def hollow(self) -> Hollow:
        """The model without weights."""
        return hollow(self.model)

    def part(self, name: str, dtype: torch.dtype) -> Any:
        """One of its networks."""
        return network(configurations(self.model)[name], self.device, dtype)


class Rows:
    """The material and the data of a run, lying in memory: the same random rows at every visit."""

    kind = "pair"

    def __init__(self, world: World, pairs: int) -> None:
        empty, self._groups = world.hollow(), groups(pairs)
        told = empty.told(2 * pairs, torch.float32)
        drawn = {n: torch.randn(v.shape) if v.is_floating_point() else torch.ones(v.shape) for n, v in told.items()}
        self.sizes = {n: v for n, v in drawn.items() if n in ("time_ids", "resolution", "aspect_ratio")}
        self.texts_ = {n: v for n, v in drawn.items() if n not in self.sizes}
        self.latents = torch.randn(empty.latents(2 * pairs, world.resolution, torch.float32).shape)
        self.embeddings, self.negative = self, {}

    def visits(self, seed: int, step: int, batch: int, *order: int) -> list[Visit]:
        return [Visit(v.group, step) for v in self._groups]

    def parts(self, visits: Sequence[Visit], size: int) -> list[Sequence[Visit]]:
        return [visits[i : i + size] for i in range(0, len(visits), size)]

    def x0(self, visits: Sequence[Visit]) -> Tensor:
        return self.latents[: 2 * len(visits)].clone()

    def texts(self, visits: Sequence[Visit]) -> list[str]:
        return [v.group.prompt for v in visits for _ in v.group.images]

    def rows(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {name: value[: len(texts)].clone() for name, value in self.texts_.items()}

    def sized(self, visits: Sequence[Visit]) -> dict[str, Tensor]:
        return {name: value[: 2 * len(visits)].clone() for name, value in self.sizes.items()}


class Ours:
    """`Trainer` past its beginning: everything it needs, without a model, data or a run's folder on disk."""

    def __init__(self, world: World, run: Run, narrow: torch.dtype | None, *, bank: bool = True) -> None:
        found = world.hollow()
        backbone, full = found.backbone, isinstance(run.policy, Full)
        wide = torch.float32 if full or narrow is None else narrow
        backbone.denoiser = world.part(backbone.part, wide).requires_grad_(False).eval()
        backbone.process = VP() if backbone.family in ("sd", "sdxl") else Flow()
        reference = None if bank else Frozen()
        policy = Policy(backbone, run.policy, 0, reference=reference, narrow=narrow, device=world.device)
        self.rows, trainer = Rows(world, run.batch), Trainer.__new__(Trainer)
        trainer.run, trainer.policy, trainer.denoiser = run, policy, policy.denoiser
        trainer.data = trainer.material = self.rows
        trainer.passes = Passes(
            run, self.rows, backbone, backbone.process, self.rows, policy, policy.denoiser, world.device,
            Known() if bank else None,
        )  # fmt: skip
        trainer.optimizer, trainer.scale = optimizers.build(run.optimizer, policy.masters), optimizers.Scale(1.0)
        trainer.rank, trainer.world, trainer.step = 0, 1, 0
        trainer.limit = trainer.divergence = 0.0
        trainer.bad, trainer.unseen = torch.full((2,), -1, device=world.device), []
        self.trainer, self.policy = trainer, policy

    def __call__(self) -> None:
        """One optimizer step, as `for step in trainer` takes it."""
        with attention.using(self.trainer.run.attention):
            self.trainer._advance()


@dataclass(frozen=True)
class Script:
    """How a published script takes a micro-step.

    reference: "copy" (a second network), "off" (adapters off, by walking all modules) or "none". rank: of the adapter,
    0 for full training. reads: numbers brought to the host. offload: autoencoder, text encoders and reference lie on
    the host and come for their pass. wide: the autoencoder is in float32. every: micro-steps of an optimizer step.
    """

    name: str
    reference: str
    checkpointing: bool
    rank: int
    reads: int
    offload: bool
    wide: bool
    every: int
    pairs: int


SALESFORCE = Script("Salesforce, full", "copy", True, 0, 5, True, False, 128, 1)
DIFFUSERS = Script("diffusers, LoRA", "off", True, 8, 4, False, True, 1, 8)
MAPO = Script("MaPO, full", "none", True, 0, 6, False, True, 1, 8)


class Theirs:
    """A step of one of the scripts on SDXL: everything in the loop. `narrow`: in which they compute under autocast."""

    def __init__(self, world: World, script: Script, pairs: int, narrow: torch.dtype | None) -> None:
        self.world, self.script, self.pairs, self.narrow = world, script, pairs, narrow
        low, high = narrow or torch.float32, torch.float32
        self.vae = world.part("vae", high if script.wide else low).requires_grad_(False)
        self.encoders = [world.part(n, low).requires_grad_(False) for n in ("text_encoder", "text_encoder_2")]
        self.unet = world.part("unet", low if script.rank else high)
        self.other = world.part("unet", low).requires_grad_(False) if script.reference == "copy" else None
        if script.rank:
            self.unet.requires_grad_(False)
            targets = ["to_k", "to_q", "to_v", "to_out.0"]
            self.unet.add_adapter(LoraConfig(r=script.rank, lora_alpha=script.rank, target_modules=targets))
            diffusers.training_utils.cast_training_params(self.unet, torch.float32)
        if script.checkpointing:
            self.unet.enable_gradient_checkpointing()
        if script.offload:
            for module in (self.vae, *self.encoders, self.other):
                accelerate.cpu_offload(module, execution_device=world.device)
        self.unet.train()
        self.weights = [p for p in self.unet.parameters() if p.requires_grad]
        self.optimizer, self.done = self._optimizer(), 0
        side, self.process = world.resolution, VP()
        self.pixels = torch.rand(2 * pairs, 3, side, side) * 2 - 1
        self.words = torch.randint(0, min(e.config.vocab_size for e in self.encoders), (pairs, 77))
        self.sizes = torch.full((2 * pairs, 6), float(side), device=world.device)

    def _optimizer(self) -> torch.optim.Optimizer:
        """Theirs: Adafactor (Salesforce's SDXL), else 8-bit AdamW, or AdamW where bitsandbytes is not installed."""
        if self.script.reference == "copy":
            return torch.optim.Adafactor(self.weights, lr=1e-8)
        if self.world.device.type == "cuda" and importlib.util.find_spec("bitsandbytes"):
            return importlib.import_module("bitsandbytes").optim.AdamW8bit(self.weights, lr=1e-8)
        return torch.optim.AdamW(self.weights, lr=1e-8)

    def _ask(self, unet: nn.Module, x: Tensor, t: Tensor, words: Tensor, pooled: Tensor) -> Tensor:
        told = {"text_embeds": pooled, "time_ids": self.sizes}
        return unet(x, t, encoder_hidden_states=words, added_cond_kwargs=told, return_dict=False)[0]

    def shown(self) -> tuple[Tensor, Tensor, Tensor]:
        """(latents, words, pooled) of a batch that comes from the host."""
        device, dtype = self.world.device, next(self.vae.parameters()).dtype
        with torch.no_grad():
            x0 = self.vae.encode(self.pixels.to(device, dtype)).latent_dist.sample() * self.vae.config.scaling_factor
            said = [encoder(self.words.to(device), output_hidden_states=True) for encoder in self.encoders]
        words = torch.cat([s.hidden_states[-2] for s in said], -1).repeat(2, 1, 1)
        return x0, words, said[-1][0].repeat(2, 1)

    def _past(self, *asked: Tensor) -> Tensor:
        if self.script.reference == "off":
            self.unet.disable_adapters()
        with torch.no_grad():
            found = self._ask(self.other or self.unet, *asked)
        if self.script.reference == "off":
            self.unet.enable_adapters()
        return found

    def __call__(self) -> None:
        """One micro-step, and the optimizer's where it is due."""
        script, kind = self.script, self.world.device.type
        narrow = torch.autocast(kind, self.narrow or torch.bfloat16, enabled=self.narrow is not None)
        x0, words, pooled = self.shown()
        eps = torch.randn_like(x0[: self.pairs]).repeat(2, 1, 1, 1)
        t = torch.randint(0, 1000, (self.pairs,), device=x0.device).repeat(2)
        asked = (self.process.noise(x0.float(), eps.float(), t).x_t.to(x0.dtype), t, words, pooled)
        with narrow:
            new = (self._ask(self.unet, *asked).float() - eps.float()).square().flatten(1).mean(1)
            old = 0.0
            if script.reference != "none":
                old = (self._past(*asked).float() - eps.float()).square().flatten(1).mean(1)
        chosen, rejected = (new - old).chunk(2)
        loss = (-logsigmoid(-2500.0 * (chosen - rejected))).mean()
        if script.reference == "none":  # MaPO's likelihood term beside the ratio
            loss = loss + chosen.mean()
        for _ in range(script.reads):
            float(loss.detach())
        loss.backward()
        self.done += 1
        if self.done % script.every == 0:
            torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def default(objective: Any, policy: Any, pairs: int, parts: int = 1, **changes: Any) -> Run:
    """A run of `parts` micro-batches of `pairs`, as `Ours` takes it."""
    return Run(
        "none", objective, policy=policy, batch=pairs * parts, micro_batch=pairs, optimizer=AdamW(lr=1e-8), **changes
    )  # fmt: skip


def bare(ours: Ours, pairs: int) -> Callable[[], None]:
    """`bench_counters.bare`, clipping and AdamW: what no training can leave out."""
    backward, trainer = bench_counters.bare(ours.trainer.passes, pairs), ours.trainer
    weights = list(ours.policy.masters.values())

    def once() -> None:
        backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)

    return once
