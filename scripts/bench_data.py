"""What reading data costs: python scripts/bench_data.py [size] [memory] [loader] [filling]

Each line gives what was measured and the bound that it is held against. Times are processor seconds of one thread
(the clock's would measure a busy machine), but for the start, which a user waits for. No model is needed: latents are
random numbers of the shapes that models have.
"""

import argparse
import io
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import torch
from torch import Tensor

from diffalign import cache, decoding, folders, views
from diffalign.dataset import Dataset
from diffalign.material import Material
from diffalign.objectives import DPO
from diffalign.records import Image, Prompt, pair, prompt_id
from diffalign.run import Pictures, Run
from diffalign.views import View

KIND = {"model": "bench", "stored": "float16"}


def line(what: str, found: float, bound: float, unit: str, *, least: bool = False) -> None:
    over = found < bound if least else found > bound
    word = "at least" if least else "bound"
    print(f"{what:<58} {found:10.3f} {unit:<8} ({word} {bound:g} {unit}){'  OVER' if over else ''}", flush=True)


class Computed:
    """Random latents in place of an autoencoder's."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.generator = shape, torch.Generator().manual_seed(0)

    def __call__(self, ids: Sequence[str]) -> dict[str, Tensor]:
        return {"latents": torch.randn(len(ids), *self.shape, generator=self.generator)}


def size() -> None:
    """Bytes of the latent cache per image, and whether they grow linearly."""
    found = []
    for count in (64, 128, 256):
        with tempfile.TemporaryDirectory() as place:
            store = cache.Store(Path(place), "latents", KIND)
            ids = [f"{n:064x} {View(1024, 1024).name}" for n in range(count)]
            cache.fill(store, list(cache.cut(ids, 16)), Computed((4, 128, 128)), "float16")
            found.append(sum(p.stat().st_size for p in Path(place).rglob("*") if p.is_file()))
    line("latent cache per 1024x1024 image, float16 mean", found[-1] / 256 / 1000, 140, "kB")
    line("bytes of 256 images over 4 x those of 64", found[2] / found[0] / 4, 1.01, "x")


def world(place: Path, pairs: int) -> Path:
    """A folder of so many pairs of pictures that nobody will decode, two images and half a prompt each."""
    if (place / "diffalign.json").exists():
        return place
    batch = 5000
    folders.begin(place, folders.Manifest("import", {"bench": pairs}, -(-pairs // batch)))
    for part, start in enumerate(range(0, pairs, batch)):
        prompts, images, rows = [], [], []
        for n in range(start, min(start + batch, pairs)):
            text = f"picture {n // 2} of a bench, long enough to look like what people write"
            name, ids = prompt_id(text), (f"{2 * n:064x}", f"{2 * n + 1:064x}")
            prompts += [Prompt(name, text)] if n % 2 == 0 else []
            images += [Image(i, name, {"bytes": b"0", "path": None}, i, 64, 64) for i in ids]
            rows.append(pair(name, *ids, 1.0, source="bench", score_gap=0.1))
        for table, found in (("prompts", prompts), ("judgements", rows), ("images", images)):
            folders.write_part(place, table, part, found)
    return place


def material(folder: Path, place: Path, side: int) -> Material:
    """What a run reads, filled with random numbers where it is not there yet."""
    shown = Pictures(stored="float16")
    run = Run("bench", DPO(), data=str(folder), cache=str(place), resolution=64, pictures=shown)
    data = Dataset(folder, cache=place)
    latents, texts = cache.Store(place, "latents", KIND | {"side": side}), cache.Store(place, "texts", KIND)
    name = View(64, 64).name
    rows = (f"{sha} {name}" for sha in _lacking(latents, data, name))
    cache.fill(latents, _batches(rows, 512), Computed((4, side, side)), "float16")
    if texts.missing([data.shown(data.groups[0], data.groups[0].images[0])]):
        cache.fill(texts, _batches(data.shown_texts(), 512), Computed((8, 16)), "float16")
    return Material(run, data, {(64, 64): latents}, texts, {}, _no_sizes)


def _no_sizes(original: Sequence[tuple[int, int]], target: tuple[int, int], at: tuple[float, float]) -> dict:
    return {"time_ids": torch.zeros(len(original), 6)}


def _lacking(store: cache.Store, data: Dataset, name: str) -> Iterator[str]:
    table = data.images.table["sha256"]
    if store.missing([f"{table[0].as_py()} {name}"]):
        yield from (sha.as_py() for sha in table)


def _batches(names: Iterator[str], count: int) -> Iterator[list[str]]:
    while found := list(itertools.islice(names, count)):
        yield found


def visit(found: Material, steps: int, batch: int) -> None:
    for step in range(steps):
        visits = found.data.visits(0, step, batch)
        found.x0(visits)
        found.told(visits)


def probe(folder: Path, place: Path, side: int, steps: int, answer: Any) -> None:
    """Seconds to the first batch, on the clock and of the processor, then the anonymous memory after many; in a process
    of its own.
    """
    start, worked = time.monotonic(), time.process_time()
    found = material(folder, place, side)
    visit(found, 1, 16)
    first, worked = time.monotonic() - start, time.process_time() - worked
    visit(found, steps, 16)
    pa.default_memory_pool().release_unused()
    answer.send((first, worked, anonymous()))


def anonymous() -> float:
    """MB of memory of this process that lies in no file."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(row.split()[1] for row in status if row.startswith("RssAnon"))) / 1000


def apart(call: Callable[..., object], *given: object) -> Any:
    """What `call` sends from a process that is gone afterwards, with all the memory that it took."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=call, args=(*given, theirs))
    child.start()
    theirs.close()
    found = ours.recv()
    child.join()
    return found


def memory(place: Path, small: int = 1000, large: int = 100_000) -> None:
    """Anonymous memory of a loader of small latents, and the time to its first batch, when the index is there."""
    found = {}
    for pairs in (small, large):
        folder, kept = place / f"data-{pairs}", place / f"cache-{pairs}"
        apart(_world, folder, pairs)
        for what in ("first start, index and caches made", "then"):
            found[pairs] = apart(probe, folder, kept, 8, 0 if what != "then" else 100)
            print(
                f"{pairs} pairs, {what}: {found[pairs][0]:.2f} s, {found[pairs][1]:.2f} s of the processor", flush=True
            )
    line(f"start on {large} pairs, index there", found[large][0], 3, "s")
    line(f"anonymous memory, {large} over {small} pairs", found[large][2] - found[small][2], 50, "MB")


def _world(place: Path, pairs: int, answer: Any) -> None:
    answer.send(world(place, pairs))


def loader(place: Path) -> None:
    """Pairs a second that one process reads of 1024x1024 latents, checked, with their embeddings."""
    found = material(world(place / "data-1000", 1000), place / "cache-large", 128)
    visit(found, 2, 16)
    start = time.process_time()
    visit(found, 20, 16)
    line("pairs of 1024x1024 from the latent cache, one worker", 320 / (time.process_time() - start), 20, "pairs/s",
         least=True)  # fmt: skip


def filling() -> None:
    """Processor time from a pair's JPEG files to bytes for the autoencoder, against what a published script does.

    The two take turns, so that both find the allocator as it is in a process that has been at work for a while.
    """
    for size, resolution in ((1024, 1024), (768, 1024), (1024, 512)):
        files, view = (_jpeg(size, 0), _jpeg(size, 1)), View(resolution, resolution)
        ways = (
            lambda f=files, r=resolution: _published(*f, r),
            lambda f=files, v=view: [views.pixels(decoding.rgb(d), v) for d in f],
        )
        theirs, ours = (min(found) for found in zip(*([_cost(way) for way in ways] for _ in range(5)), strict=True))
        print(f"{size} -> {resolution}: {1000 * ours:.1f} ms a pair, published {1000 * theirs:.1f} ms")
        line(f"preparing a pair, {size} -> {resolution}, over the published way", ours / theirs, 0.4, "x")


def _published(first: bytes, second: bytes, resolution: int) -> Tensor:
    """What diffusers' script of SDXL Diffusion-DPO does of a pair: the first file is decoded twice, the second brought
    to its size, both as floats resized, mirrored, cropped, normalised and stacked.
    """
    from torchvision import transforms

    height, width = PIL.Image.open(io.BytesIO(first)).convert("RGB").size[::-1]
    one, two = (PIL.Image.open(io.BytesIO(data)).convert("RGB") for data in (first, second))
    both = torch.cat([transforms.ToTensor()(one), transforms.ToTensor()(two.resize((width, height)))])
    both = transforms.Resize(resolution)(both)
    both = transforms.RandomHorizontalFlip(p=1.0)(both)
    both = transforms.Normalize([0.5], [0.5])(transforms.CenterCrop(resolution)(both))
    return torch.stack([both]).contiguous().float()


def _jpeg(size: int, seed: int) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
    sink = io.BytesIO()
    PIL.Image.fromarray(small).resize((size, size), PIL.Image.Resampling.BICUBIC).save(sink, "JPEG", quality=92)
    return sink.getvalue()


def _cost(call: object, times: int = 4) -> float:
    call()
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["size", "memory", "loader", "filling"])
    parser.add_argument("--place", type=Path, help="folder for data and caches, kept; by default a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.place or Path(temporary)
        for name in arguments.what:
            {"size": size, "filling": filling, "memory": lambda: memory(place), "loader": lambda: loader(place)}[name]()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
