"""Pictures per processor second, against diffusers' own pipeline, on the embedded SDXL and one thread:
python scripts/bench_sampling.py [speed] [start]

`speed` draws 64 prompts x 4 in turns of one batch each, so that a busy machine is busy for all alike, as PNG bytes:
by the pipeline called once an image, by the pipeline called with the same batch, and as `diffalign sample` does.
`start` makes the work list of 100,000 images and looks for what is missing, as far as the first picture.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from diffalign import backbones, cache, folders, plan, worklist
from diffalign.drawing import Artist, Sampler, to_png
from diffalign.job import Job
from diffalign.prompts import read_prompts
from diffalign.records import Prompt, prompt_id
from diffalign.shapes import captions

STEPS, GUIDANCE, BATCH, SIZE = 14, 3.0, 16, 64
BOUNDS = {"once an image": 2.0, "the same batch": 1.0}


def texts(count: int) -> list[str]:
    """The first captions of the dev split."""
    found = dict.fromkeys(captions.prompts("dev", 2 * count))
    return list(found)[:count]


def speed(prompts: int, per_prompt: int) -> None:
    """Processor seconds of the three ways."""
    backbone = backbones.load("shapes/sdxl")
    pipe = backbone.pipeline(backbone.denoiser)
    pipe.set_progress_bar_config(disable=True)
    listed = [Prompt(prompt_id(text), text) for text in texts(prompts)]
    (cuts,) = [worklist.cuts(listed, {}, (SIZE, SIZE), per_prompt, BATCH)]
    parts = list(cache.cut(listed, 32))
    home = {p.id: part for part in parts for p in part}
    artist: list[Artist] = []

    def by_pipeline(shown: list[str]) -> list[bytes]:
        images = pipe(
            shown, num_inference_steps=STEPS, guidance_scale=GUIDANCE, height=SIZE, width=SIZE
        ).images  # fmt: skip
        return [to_png(np.asarray(image)) for image in images]

    def ours(cut: worklist.Cut) -> list[bytes]:
        if not artist:
            artist.append(Artist(backbone, Sampler(STEPS, GUIDANCE, SIZE, SIZE), 0))
        artist[0].encode(*{home[p.id][0].id: home[p.id] for p, _ in cut.work}.values())
        return [to_png(picture) for picture in artist[0].draw([(p.id, i) for p, i in cut.work])]

    ways: dict[str, Callable[[worklist.Cut], list[bytes]]] = {
        "once an image": lambda cut: [png for p, _ in cut.work for png in by_pipeline([p.text])],
        "the same batch": lambda cut: by_pipeline([p.text for p, _ in cut.work]),
        "diffalign": ours,
    }
    spent, drawn = dict.fromkeys(ways, 0.0), 0
    by_pipeline([listed[0].text] * 2)
    for cut in cuts:
        for name, way in ways.items():
            before = time.process_time()
            assert len(way(cut)) == len(cut)
            spent[name] += time.process_time() - before
        drawn += len(cut)
        ratios = {name: spent[name] / spent["diffalign"] for name in BOUNDS}
        said = "; ".join(f"{name}: {drawn / s:.2f} images a second" for name, s in spent.items())
        print(f"{drawn} images; {said}", *(f"against {n}: {r:.2f}x" for n, r in ratios.items()), sep="; ", flush=True)
    for name, ratio in ratios.items():
        print(
            f"against {name:<16} {ratio:6.2f} x (bound {BOUNDS[name]:g} x){'' if ratio >= BOUNDS[name] else '  UNDER'}"
        )


def start(count: int) -> None:
    """Seconds and memory until the first batch of a long list is known to be missing, beside those of a short list."""
    peaks = []
    for total in (1000, count):
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / "prompts.txt").write_text("".join(f"prompt number {i}\n" for i in range(total // 4)))
            before = time.process_time()
            listed = read_prompts(Path(place) / "prompts.txt")
            asked = plan.Plan("shapes/sdxl", steps=STEPS, guidance=GUIDANCE)
            job = Job(Path(place) / "out", asked, plan.identity(asked), listed, 0, 4, BATCH, 16, False, "")
            cuts = worklist.cuts(listed.prompts, listed.sizes, (0, 0), 4, BATCH)
            folders.check(job.out, job.manifest(len(cuts), None))
            first = next(n for n, cut in enumerate(cuts) if not job.is_whole(n, cut))
            spent = time.process_time() - before
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(f"{total} images, {len(cuts)} batches, first to draw {first}: {spent:.2f} s, peak {peaks[-1]:.0f} MiB")
    print(
        f"start {spent:.2f} s (bound 5 s){'' if spent < 5 else '  OVER'}; memory grows by {peaks[1] - peaks[0]:.0f} MiB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["start", "speed"])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--per-prompt", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.what:
        speed(given.prompts, given.per_prompt) if name == "speed" else start(100_000)
