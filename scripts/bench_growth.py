"""How a run grows: python scripts/bench_growth.py [--large 20000]

Time over pairs visited (a straight line?), memory of a step over the size of the data, bytes of the bank. The loop is
the trainer's own on a small UNet, over data, latents, embeddings and a bank on disk as a run has them; latents and
embeddings are random numbers. Processor seconds of one thread.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_data
import numpy as np
import torch
from bench_ratios import small
from bench_steps import Ours, World, default
from torch import Tensor

from diffalign import bank, cache
from diffalign.dataset import Dataset
from diffalign.material import Material
from diffalign.objectives import DPO
from diffalign.run import LoRA, Pictures
from diffalign.views import View

BATCH = 10


class Random:
    """Random rows in place of an autoencoder's or of text encoders', of these shapes."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes, self.generator = shapes, torch.Generator().manual_seed(0)

    def __call__(self, ids: Sequence[str]) -> dict[str, Tensor]:
        return {n: torch.randn(len(ids), *s, generator=self.generator) for n, s in self.shapes.items()}


def trainer(place: Path, pairs: int) -> Ours:
    """The loop over so many pairs of pictures, everything made that a run would make first."""
    folder, kept, side = bench_data.world(place / f"data-{pairs}", pairs), place / f"cache-{pairs}", 32
    model = World(str(place / "model"), side, torch.device("cpu"))
    if not (place / "model").exists():
        (place / "model").mkdir()
        small(place / "model")
    run = default(DPO(beta=5000.0), LoRA(rank=8, alpha=8.0), BATCH, precision="float32", data=str(folder))
    run = replace(run, resolution=side, pictures=Pictures(stored="float16"), steps=10**6)
    data, view, empty = Dataset(folder, cache=kept), View(side, side), model.hollow()
    latents, texts = (cache.Store(kept, kind, bench_data.KIND) for kind in ("latents", "texts"))
    shape = tuple(empty.latents(1, side, torch.float32).shape[1:])
    told = {n: tuple(v.shape[1:]) for n, v in empty.told(1, torch.float32).items() if n != "time_ids"}
    names = [f"{sha} {view.name}" for sha in data.images.table["sha256"].to_pylist()]
    if latents.missing(names[:1]):
        cache.fill(latents, list(cache.cut(names, 512)), Random({"latents": shape}), "float16")
        cache.fill(texts, list(cache.cut(list(data.shown_texts()), 512)), Random(told), "float16")
    made = Ours(model, run, None, bank=False)
    stored = Material(run, data, {(side, side): latents}, texts, {}, bench_data._no_sizes)
    errors = bank.Bank(kept / "reference", {"bench": pairs}, data, torch.float32)
    made.trainer.data, made.trainer.material = data, stored
    made.trainer.passes = replace(made.trainer.passes, data=data, material=stored, bank=errors)
    return made


def probe(place: Path, pairs: int, answer: Any) -> None:
    """Memory after an epoch of the smaller data, and the bank's bytes per image; in a process of its own."""
    made = trainer(place, pairs)
    for _ in range(1000 // BATCH // 4):
        made()
    file = next((place / f"cache-{pairs}" / "reference").glob("errors.*"))
    answer.send((bench_data.anonymous(), file.stat().st_size))


def speed(place: Path, answer: Any) -> None:
    """(pairs, processor seconds) of stretches of a run in a mixed order, the least of three of each length.

    What else the machine does makes a stretch longer, never shorter.
    """
    made, found = trainer(place, 1000), dict[int, float]()
    made()
    for steps in (3, 12, 1, 16, 6, 9) * 3:
        start = time.process_time()
        for _ in range(steps):
            made()
        taken = time.process_time() - start
        found[steps * BATCH] = min(found.get(steps * BATCH, taken), taken)
    answer.send(sorted(found.items()))


def main(large: int) -> None:
    """The three rows."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        visits, seconds = np.array(bench_data.apart(speed, place)).T
        slope, start = np.polyfit(visits, seconds, 1)
        fitted = 1 - ((seconds - slope * visits - start) ** 2).sum() / ((seconds - seconds.mean()) ** 2).sum()
        print(
            f"{1000 * slope:.1f} ms a pair {1000 * start:+.0f} ms, in stretches of {visits.min():g} to {visits.max():g}"
        )
        bench_data.line("time over pairs visited, R²", fitted, 0.99, "", least=True)
        for pairs in (1000, large):  # what is made once is made, and its memory gone with its process
            bench_data.apart(probe, place, pairs)
        few, many = (bench_data.apart(probe, place, n) for n in (1000, large))
        bench_data.line(f"memory of a step, {large} over 1000 pairs", many[0] - few[0], 50, "MB")
        bench_data.line("bank in a first epoch, per image and draw", few[1] / 2000, 4, "bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, default=20_000, help="pairs of the larger data")
    main(**vars(parser.parse_args()))
