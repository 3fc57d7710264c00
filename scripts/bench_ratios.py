"""Ratios of processor time on one thread: what a cache saves, what the library costs, what other scripts do.

    python scripts/bench_ratios.py [--rounds 5] [--pairs 4] [--rows bank latents …]

A small UNet on 32 x 32 latents, with an autoencoder that costs beside it about what SDXL's does at 1024 pixels (0.72 of
a forward pass there). Two steps are timed in turn, A B A, A B A …, each by the process's own processor time; a ratio is
the median over the rounds. The library's step is `Trainer`'s own (`bench_steps.Ours`), and the bare loop, written by
hand (`bench_counters.bare`), runs the same network and optimizer. The stand-ins for other scripts are
`bench_steps.Script` with an optimizer's step each time; their precision and offloading are left out, which a processor
would not show.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bench_counters as counters
import torch
from bench_steps import DIFFUSERS, MAPO, SALESFORCE, Ours, Theirs, World, bare, default
from torch.utils.flop_counter import FlopCounterMode

from diffalign.objectives import DPO
from diffalign.run import Full, LoRA

SIDE = 128
ROWS = ("bank", "latents", "overhead", "salesforce", "diffusers", "mapo")
TEXT = {"vocab_size": 1000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "projection_dim": 32, "bos_token_id": 0, "eos_token_id": 2}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "unet": counters.SDXL_UNET | {
        **{"block_out_channels": (32, 64, 128), "attention_head_dim": (2, 4, 8), "cross_attention_dim": 64},
        **{"transformer_layers_per_block": (1, 1, 2), "addition_time_embed_dim": 8},
        "projection_class_embeddings_input_dim": 80, "_class_name": "UNet2DConditionModel",
    },
    "vae": {
        "_class_name": "AutoencoderKL", "block_out_channels": (32, 64, 64), "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": 4, "norm_num_groups": 8,
    },
    "text_encoder": TEXT | {"_class_name": "CLIPTextModel"},
    "text_encoder_2": TEXT | {"_class_name": "CLIPTextModelWithProjection"},
}  # fmt: skip


def small(place: Path) -> World:
    """SDXL's shape, of a few million parameters, as configurations in a folder."""
    index = {"_class_name": "StableDiffusionXLPipeline"} | {n: ["", c["_class_name"]] for n, c in SMALL.items()}
    (place / "model_index.json").write_text(json.dumps(index))
    for name, config in SMALL.items():
        (place / name).mkdir()
        (place / name / "config.json").write_text(json.dumps(config))
    return World(str(place), SIDE, torch.device("cpu"))


def ours(world: World, policy: Any, pairs: int, *, bank: bool = True) -> Ours:
    """The library's step in float32."""
    return Ours(world, default(DPO(beta=5000.0), policy, pairs, precision="float32"), None, bank=bank)


def encoding(made: Ours, world: World) -> Callable[[], None]:
    """The library's step after encoding its pictures, as if nothing were kept."""
    vae, images = world.part("vae", torch.float32), len(made.rows.latents)
    pixels = torch.rand(images, 3, SIDE, SIDE) * 2 - 1

    def once() -> None:
        with torch.no_grad():
            made.rows.latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
        made()

    return once


def ratio(rounds: int, a: Callable[[], None], b: Callable[[], None]) -> tuple[float, float, float]:
    """(median of A / B, lowest, highest); A, B, A in turn, after one of each that does not count."""
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


Pair = tuple[Callable[[], None], Callable[[], None]]


def row(world: World, name: str, pairs: int) -> tuple[str, Pair, str]:
    """(what is compared, the two steps, the bound) of a row."""
    full, lora = Full(), LoRA(rank=8, alpha=8.0)
    if name == "bank":
        steps = (ours(world, full, pairs, bank=False), ours(world, full, pairs))
        return "live reference / bank", steps, ">= 1.25"
    if name == "latents":
        steps = (encoding(ours(world, full, pairs), world), ours(world, full, pairs))
        return "autoencoder in the loop / cached latents", steps, ">= 1.15"
    if name == "overhead":
        made = ours(world, full, pairs)
        return "the library / a bare loop", (made, bare(made, pairs)), "<= 1.05"
    script = {"salesforce": SALESFORCE, "diffusers": DIFFUSERS, "mapo": MAPO}[name]
    plain = dataclasses.replace(script, offload=False, every=1)
    base = ours(world, lora if script.rank else full, pairs)
    return f"{script.name} / ours", (Theirs(world, plain, pairs, None), base), ""


def main(rounds: int = 5, pairs: int = 4, rows: Sequence[str] = ROWS) -> None:
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("torch", "diffusers"))
    print(f"{datetime.datetime.now(datetime.UTC).date()}, {versions}, {pairs} pairs a step, {rounds} rounds")
    print(f"{'processor time, one thread':<52} {'median':>7} {'range':>13} {'by FLOP':>8}  must be", flush=True)
    with tempfile.TemporaryDirectory() as place:
        world = small(Path(place))
        for what, (a, b), bound in (row(world, name, pairs) for name in rows):
            middle, low, high = ratio(rounds, a, b)
            print(f"{what:<52} {middle:7.3f} {low:6.2f}-{high:5.2f} {flops(a) / flops(b):8.3f}  {bound}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    torch.set_num_threads(1)
    main(**vars(parser.parse_args()))
