"""Exact counts of a training step on the meta device: real configurations, no weights, no noise.

    python scripts/bench_counters.py [sdxl] [sd15] [sd3] [flux]

The step is the library's own (`passes`, `step`, `policy`), run on tensors without contents: what would wait for the
device cannot (there is no number to read) and ends the count. Floating-point operations count a multiply-add as two;
attention counts as a flash kernel does (its backward pass computes the scores again).
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, mse_loss
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from diffalign import activations, measuring, optimizers, states, step
from diffalign.backbones import SD, SD3, SDXL, Flux
from diffalign.dataset import Group, Visit
from diffalign.diffusion import VP, Flow, draw_noise
from diffalign.measuring import Told
from diffalign.objectives import DPO
from diffalign.passes import Passes
from diffalign.policy import Policy
from diffalign.records import pair
from diffalign.run import Adaptation, Frozen, Full, LoRA, Run
from diffalign.trainer import UNSEEN

GIB, TERA = 2**30, 1e12
SDXL_UNET = {
    **{"cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "block_out_channels": (320, 640, 1280)},
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    **{"transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True},
    **{"addition_embed_type": "text_time", "addition_time_embed_dim": 256},
    "projection_class_embeddings_input_dim": 2816,
}
SD3_DIT = {
    **{"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24},
    **{"attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096},
    **{"caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 192},
}


@dataclass(frozen=True)
class Model:
    """A family, its denoiser without weights, its process, and the shapes of a latent and of the conditioning."""

    family: type
    build: Callable[[], nn.Module]
    process: Any
    latent: tuple[int, ...]
    texts: dict[str, tuple[int, ...]]
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)


MODELS = {
    "sdxl": Model(
        SDXL, lambda: diffusers.UNet2DConditionModel(**SDXL_UNET), VP(), (4, 128, 128),
        {"prompt_embeds": (77, 2048), "pooled": (1280,)}, {"time_ids": (6,)},
    ),
    "sd15": Model(
        SD, lambda: diffusers.UNet2DConditionModel(cross_attention_dim=768), VP(), (4, 64, 64),
        {"prompt_embeds": (77, 768)},
    ),
    "sd3": Model(
        SD3, lambda: diffusers.SD3Transformer2DModel(**SD3_DIT), Flow(), (16, 128, 128),
        {"prompt_embeds": (333, 4096), "pooled": (2048,)},
    ),
    "flux": Model(
        Flux, lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True), Flow(), (16, 128, 128),
        {"prompt_embeds": (512, 4096), "pooled": (768,)},
    ),
}  # fmt: skip


class Blank:
    """The material of a run, without contents: rows of known shapes. It is its own store of embeddings."""

    def __init__(self, latent: tuple[int, ...], texts: dict[str, tuple[int, ...]], sizes: dict[str, tuple[int, ...]]):
        self.latent, self.shapes, self.sizes = latent, texts, sizes
        self.embeddings, self.negative = self, {}

    def x0(self, visits: Sequence[Visit]) -> Tensor:
        return torch.zeros(sum(len(v.group.images) for v in visits), *self.latent)

    def texts(self, visits: Sequence[Visit]) -> list[str]:
        return [v.group.prompt for v in visits for _ in v.group.images]

    def rows(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {name: torch.zeros(len(texts), *shape) for name, shape in self.shapes.items()}

    def sized(self, visits: Sequence[Visit]) -> dict[str, Tensor]:
        images = sum(len(v.group.images) for v in visits)
        return {name: torch.zeros(images, *shape) for name, shape in self.sizes.items()}


class Known:
    """A bank that knows everything."""

    def read(self, visits: Sequence[Visit]) -> Tensor:
        return torch.ones(sum(len(v.group.images) for v in visits))


@dataclass
class Counts:
    """Of one step, per pair: floating-point operations, kernels, bytes kept for the backward pass, copies to the device
    and their bytes, and how often other networks than the policy were asked."""

    flops: float = 0.0
    kernels: float = 0.0
    copies: float = 0.0
    kept: float = 0.0
    sent: float = 0.0
    reference: int = 0


class _Operators(TorchDispatchMode):
    """Counts kernels (operators that make something new), and copies from the host with their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.copies, self.sent = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        first = args[0] if args and isinstance(args[0], Tensor) else None
        # what works in place on a list of tensors gives nothing back, and is one kernel
        made = args[0] if found is None and args else found
        one = made[0] if isinstance(made, (list, tuple)) and made else made
        on_device = isinstance(one, Tensor) and one.device.type == "meta"
        if on_device and first is not None and first.device.type == "cpu":
            self.copies, self.sent = self.copies + 1, self.sent + first.nbytes
        elif on_device and not func.is_view and "empty" not in str(func):
            self.kernels += 1
        return found


@contextlib.contextmanager
def flash() -> Iterator[None]:
    """Within: attention is the flash kernel's operator, which the meta device would otherwise take apart."""
    original = nn.functional.scaled_dot_product_attention

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **named: Any
    ) -> Tensor:
        assert attn_mask is None
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False)[0]

    nn.functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = original


def groups(count: int) -> list[Visit]:
    """As many pairs, each of a prompt of its own."""
    rows = [pair(f"prompt{n}", f"a{n}", f"b{n}", 1.0, source="count") for n in range(count)]
    return [Visit(Group(r.group, f"prompt{n}", r.images, (r,)), 0) for n, r in enumerate(rows)]


META = torch.device("meta")


def passes(
    model: Model,
    adaptation: Adaptation,
    pairs: int,
    *,
    bank: bool = True,
    narrow: torch.dtype | None = torch.bfloat16,
    device: torch.device = META,
    **changes: Any,
) -> Passes:
    """The passes of a DPO run of a model, by default on the meta device in bfloat16, over a full latent cache and bank;
    `narrow` None: in float32.
    """
    backbone = model.family.__new__(model.family)
    backbone.process = model.process
    with device:
        backbone.denoiser = nn.Module.to(
            model.build(), torch.float32 if isinstance(adaptation, Full) or narrow is None else narrow
        )
    precision = "float32" if narrow is None else "bfloat16"
    run = Run("none", DPO(beta=5000.0), policy=adaptation, precision=precision, batch=pairs, **changes)
    reference = None if bank else Frozen()
    policy = Policy(backbone, adaptation, 0, reference=reference, narrow=narrow, device=device)
    data, material = SimpleNamespace(kind="pair"), Blank(model.latent, model.texts, model.sizes)
    known = Known() if bank else None
    return Passes(run, data, backbone, model.process, material, policy, policy.denoiser, device, known)


def bare(made: Passes, pairs: int) -> Callable[[], None]:
    """A step written by hand, as lean as a good script has it: what no training can leave out.

    Texts, latents, noise and times are drawn and lie on the host, and the reference's errors with them; all chosen
    images come first, and every label is certain. The step brings them to the device, noises them there in float32,
    tells both images of a pair the same text, and takes DPO's loss; gradients go to their masters by the library's own
    `collect`, which holds few of them at a time.
    """
    process, denoiser, device = made.process, made.policy.denoiser, made.device
    visits, beta = groups(pairs), made.run.objective.beta
    dtype = next(denoiser.parameters()).dtype

    def chosen_first(rows: Tensor) -> Tensor:
        return torch.cat([rows[0::2], rows[1::2]])

    x0, t = map(chosen_first, states.clean(made.run, process, made.material, visits))
    drawn = [draw_noise(made.run.seed, v.group.id, v.draw, None, tuple(x0.shape[1:])) for v in visits]
    eps = torch.from_numpy(np.stack(drawn)).repeat(2, 1, 1, 1)
    words = {n: v.to(dtype) for n, v in made.material.rows([v.group.prompt for v in visits]).items()}
    sizes = {n: chosen_first(v) for n, v in made.material.sized(visits).items()}
    known, flows = chosen_first(Known().read(visits)), isinstance(process, Flow)
    t = t.float() if flows else t
    a, s = (None, None) if flows else (r.float().to(device)[:, None, None, None] for r in roots(process))

    def once() -> None:
        latents, noise, time, reference = (v.to(device, non_blocking=True) for v in (x0, eps, t, known))
        told = {n: v.to(device, non_blocking=True) for n, v in words.items()}
        told = {n: v.repeat(2, *(1 for _ in v.shape[1:])) for n, v in told.items()}
        told |= {n: v.to(device, non_blocking=True) for n, v in sizes.items()}
        if flows:
            x_t, target = torch.lerp(latents, noise, time[:, None, None, None]), noise - latents
            time = process.scale * time
        else:
            x_t, target = torch.addcmul(a[time] * latents, s[time], noise), noise
        output = made.backbone.predict(denoiser, x_t.to(dtype), time, told)
        errors = mse_loss(output.float(), target, reduction="none").mean((1, 2, 3))
        chosen, rejected = (errors - reference).chunk(2)
        (-logsigmoid(-beta / 2 * (chosen - rejected))).mean().backward()
        optimizers.collect(made.policy.parameters, made.policy.masters)

    return once


def roots(process: VP) -> tuple[Tensor, Tensor]:
    """sqrt(alpha-bar) and sqrt(1 - alpha-bar) by step."""
    bars = torch.from_numpy(process.bars)
    return bars.sqrt(), (1 - bars).sqrt()


def step_of(made: Passes, pairs: int) -> list[Told]:
    """What a step of the trainer that is not logged does before its optimizer's: gradients, on their masters."""
    return step.gradients(made, [groups(pairs)], step.Share(float(pairs), None, 1), contextlib.nullcontext)


def look(told: Sequence[Told], device: torch.device) -> None:
    """The trainer's look, once in `UNSEEN` steps, for numbers that are not finite."""
    norm, bad = torch.empty((), device=device), torch.empty(2, dtype=torch.int64, device=device)
    measuring.first_bad(bad, [(1, [t.errors for t in told], norm)] * UNSEEN)


def count(made: Passes, pairs: int, checkpointing: str = "off", call: Callable[[], object] | None = None) -> Counts:
    """The counts per pair of `step_of`, with its share of `look`; or of `call`."""
    activations.keep(made.policy.denoiser, checkpointing, random=False)
    found, asked, past = Counts(), [], made.policy.past

    def counted(*args: Any) -> Any:
        asked.append(args)
        return past(*args)

    made.policy.past = counted
    weights = {p.untyped_storage()._cdata for p in made.policy.denoiser.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.device.type == "meta" and storage._cdata not in weights:
            kept[storage._cdata] = (storage.nbytes(), tensor)  # the tensor too, so that no address is used twice
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    operators, flops = _Operators(), FlopCounterMode(display=False)
    with flash(), hooks, flops, operators:
        told = call() if call else step_of(made, pairs)
    with _Operators() as looks:
        if call is None:
            look(told, made.device)
    found.flops, found.kernels = flops.get_total_flops() / pairs, (operators.kernels + looks.kernels / UNSEEN) / pairs
    found.kept, found.sent = sum(size for size, _ in kept.values()) / pairs, operators.sent / pairs
    found.copies = operators.copies / pairs
    found.reference = len(asked)
    return found


def table(names: Sequence[str]) -> None:
    """One line a configuration; with a bank also how many kernels and copies `bare` takes, after "/"."""
    print(
        f"{'per pair':<32} {'TFLOP':>7} {'GiB kept':>9} {'kernels':>16} {'copies':>7} {'MB sent':>8} {'reference':>10}"
    )
    for name in names:
        kinds: dict[str, Adaptation] = {"LoRA r64": LoRA(rank=64, alpha=64.0)}
        if name != "flux":
            kinds = {"full": Full(), **kinds}
        for kind, adaptation in kinds.items():
            for bank in (True, False):
                made = passes(MODELS[name], adaptation, 1, bank=bank)
                found = count(made, 1)
                least = count(made, 1, call=bare(made, 1)) if bank else None
                kernels = f"{found.kernels:.1f}" + (f" / {least.kernels:.0f}" if least else "")
                copies = f"{found.copies:.0f}" + (f" / {least.copies:.0f}" if least else "")
                what = f"{name} {kind}{'' if bank else ', live reference'}"
                print(
                    f"{what:<32} {found.flops / TERA:7.2f} {found.kept / GIB:9.2f} {kernels:>16} {copies:>7} "
                    f"{found.sent / 1e6:8.2f} {found.reference:10d}", flush=True,
                )  # fmt: skip
                if bank and name == "sdxl":
                    for checkpointing in ("selective", "full"):
                        again = count(made, 1, checkpointing)
                        print(f"  {checkpointing:<30} {again.flops / TERA:7.2f} {again.kept / GIB:9.2f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    table(sys.argv[1:] or list(MODELS))
