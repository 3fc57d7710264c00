"""What rounds are worth on the embedded world: online DPO, SPIN, curated retraining; three seeds, held-out prompts.

Each arm is a recipe of `train/rounds_*.py` at a small size, run by its own function; all policies draw the same test
prompts with the same noise. Gold score: of the pixels, seen by no training. Real images are renderings of captions.
Curated retraining is about diversity, so it lives on short captions, which leave most of a picture open: of these it
draws, sees real images, and is tested, by the Vendi score of a prompt's pictures (the proxy's picture embeddings).
Intervals are of 95 %, resampled by prompt, each prompt's value the mean over the seeds.

    python scripts/rounds.py --out build/rounds    # Markdown on stdout; OUT/rounds.json; goes on where it was stopped
"""

import argparse
import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from learns_world import picture

from diffalign import decoding, folders, places, sets, weights
from diffalign.folders import write_atomically
from diffalign.intervals import bootstrap
from diffalign.records import Prompt, digest, prompt_id
from diffalign.sampling import sample
from diffalign.scorers import features
from diffalign.scoring import score
from diffalign.shapes.captions import caption, parse, prompts, split_of
from diffalign.shapes.scene import Scene, sample_scene

SEEDS = (0, 1, 2)
MEASURES = ("gold", "gold_right", "vendi")
BASE, SHORT = "base", "base, short captions"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Prompts of all rounds together (curated: of each round), images a prompt, real images, test prompts and noises,
    the same of short captions, rounds, steps a round, groups a step, denoising steps.
    """

    prompts: int = 96
    curated: int = 32
    per_prompt: int = 4
    real: int = 64
    test: tuple[int, int] = (64, 4)
    short: tuple[int, int] = (32, 8)
    rounds: int = 3
    train_steps: int = 30
    batch: int = 12
    steps: int = 6
    split: str = "test"


def recipe(name: str) -> ModuleType:
    """The module of a shipped script of rounds."""
    path = places.recipe(f"rounds_{name}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scenes(split: str, length: str, count: int, seed: int) -> dict[str, Scene]:
    """True caption -> scene, of a split; short captions are of one object."""
    rng, found = np.random.default_rng([23, seed, len(split), len(length)]), {}
    while len(found) < count:
        scene = sample_scene(rng, 2 if length != "short" and rng.random() < 0.3 else 1)
        text = caption(scene, length, rng)
        if split_of(parse(text)) == split:
            found.setdefault(text, scene)
    return found


def write_real(place: Path, drawn: dict[str, Scene]) -> Path:
    """A folder of renderings of scenes under their captions; what is there is kept."""
    if (place / "diffalign.json").exists():
        return place
    rows = [(Prompt(prompt_id(text), text), scene) for text, scene in drawn.items()]
    folders.begin(place, folders.Manifest("sample", {"renderings": digest(*drawn)}, 1))
    folders.write_part(place, "prompts", 0, [prompt for prompt, _ in rows])
    folders.write_part(place, "images", 0, [picture(prompt.id, 0, scene) for prompt, scene in rows])
    return place


def write_texts(path: Path, texts: Iterable[str]) -> Path:
    """A prompt file."""
    write_atomically(path, "".join(f"{text}\n" for text in texts).encode())
    return path


def arms(out: Path, seed: int, sizes: Sizes) -> dict[str, Callable[[], Path | None]]:
    """Name -> what trains the arm and gives the run to draw with; SPIN's start is the run before its first round."""
    here, n, steps = out / f"seed-{seed}", sizes.rounds, sizes.train_steps
    listed = write_texts(here / "prompts.txt", prompts("train", sizes.prompts * len(SEEDS))[seed :: len(SEEDS)])
    short = scenes("train", "short", sizes.curated + sizes.real, seed)
    few = write_texts(here / "short.txt", list(short)[: sizes.curated])
    real = write_real(here / "real", scenes("train", "compositional", sizes.real, seed))
    others = write_real(here / "real-short", dict(list(short.items())[sizes.curated :]))

    def run(name: str, arm: str, rounds: int, steps: int, **asked: Any) -> Path:
        module = recipe(name)
        run = dataclasses.replace(module.RUN, steps=steps, batch=sizes.batch, seed=seed)
        module.rounds(out=here / arm, run=run, rounds=rounds, steps=sizes.steps, **asked)
        return here / arm / f"round-{rounds}" / "run"

    drawn, again = ({"per_prompt": sizes.per_prompt, "prompts": path} for path in (listed, few))
    return {
        BASE: lambda: None,
        SHORT: lambda: None,
        "online DPO, one round": lambda: run("online_dpo", "online-1", 1, n * steps, **drawn),
        "online DPO, rounds": lambda: run("online_dpo", "online-n", n, steps, **drawn),
        "fine-tuning on real images": lambda: run("spin", "spin", 0, steps, real=real),
        "SPIN, rounds": lambda: run("spin", "spin", n, steps, real=real),
        "curated, no real images": lambda: run("curated", "curated", n, steps, **again),
        "curated, 25 % real images": lambda: run(
            "curated", "curated-real", n, steps, **again, real=others, real_share=0.25
        ),
    }


def measure(place: Path, lora: Path | None, listed: Path, noises: int, steps: int) -> dict[str, list[float]]:
    """Per test prompt: mean gold score, share of all-right pictures, Vendi score of its pictures."""
    sample(
        model="shapes/sdxl", lora=(str(lora),) if lora else (), prompts=listed, out=place / "images",
        per_prompt=noises, seed=100, steps=steps, guidance=2.0, batch=32,
    )  # fmt: skip
    score(place / "images", scorer=("gold", "gold_right"), out=place / "scores")
    values: dict[str, dict[str, list[float]]] = {name: {} for name in ("gold", "gold_right")}
    for row in folders.records(place / "scores", "scores"):
        values[row.scorer].setdefault(row.prompt_id, []).append(row.value)
    of: dict[str, list[np.ndarray]] = {}
    prompt = {name: row["prompt_id"] for name, row in folders.image_rows(place / "images").items()}
    seen, _ = features.load("shapes_clip")
    pictures = [(name, decoding.rgb(data)) for name, data in folders.image_bytes(place / "images", prompt)]
    for (name, _), row in zip(pictures, seen([image for _, image in pictures]), strict=True):
        of.setdefault(prompt[name], []).append(row)
    order = sorted(of)
    found = {name: [float(np.mean(by[p])) for p in order] for name, by in values.items()}
    return found | {"vendi": [sets.vendi(np.stack(of[p])) for p in order]}


def perform(out: Path, seed: int, arm: str, sizes: Sizes) -> dict[str, Any]:
    """Train an arm, draw and judge its test pictures; seconds are CPU seconds of this process."""
    started = time.process_time()
    lora = arms(out, seed, sizes)[arm]()
    trained = time.process_time()
    place = out / f"seed-{seed}" / "test" / "".join(c if c.isalnum() else "-" for c in arm)
    kind = "short" if arm == SHORT or arm.startswith("curated") else "test"
    found = measure(place, lora, out / f"{kind}.txt", getattr(sizes, kind)[1], sizes.steps)
    seconds = {"train": round(trained - started, 1), "measure": round(time.process_time() - trained, 1)}
    return {"arm": arm, "seed": seed, "seconds": seconds, **found}


def made_from(arm: str, sizes: Sizes) -> str:
    """A hash of what a row must have been made from to be read again: sizes, weights, and the recipe of its rounds."""
    names = {"online": "online_dpo", "fine-tuning": "spin", "SPIN,": "spin", "curated,": "curated"}
    path = places.recipe(f"rounds_{names[arm.split()[0]]}") if arm not in (BASE, SHORT) else None
    model = weights.fingerprint(weights.locate("shapes/sdxl"))
    return digest(json.dumps(dataclasses.asdict(sizes)), model, path.read_bytes() if path else None)


def table(out: Path, seeds: Sequence[int], sizes: Sizes) -> list[dict[str, Any]]:
    """The rows of all arms and seeds, each also at OUT/rows, from where it is read again. The base is measured once."""
    write_texts(out / "test.txt", prompts(sizes.split, sizes.test[0]))
    write_texts(out / "short.txt", scenes(sizes.split, "short", sizes.short[0], 0))
    rows = []
    for seed in seeds:
        for number, arm in enumerate(arms(out, seed, sizes)):
            path = out / "rows" / f"{seed}-{number}.json"
            row = json.loads(path.read_text()) if path.exists() else {}
            made = made_from(arm, sizes)
            if row.get("made") != made and (arm not in (BASE, SHORT) or seed == seeds[0]):
                row = perform(out, seed, arm, sizes) | {"made": made}
                write_atomically(path, (json.dumps(row) + "\n").encode())
                means = {name: round(float(np.mean(row[name])), 4) for name in MEASURES}
                print(f"seed {seed}, {arm}: {means}, {row['seconds']}", file=sys.stderr, flush=True)
            rows += [row] if row else []
    write_atomically(out / "rounds.json", (json.dumps(rows, indent=1) + "\n").encode())
    return rows


def gathered(rows: Sequence[dict[str, Any]], arm: str, name: str) -> np.ndarray:
    """(seeds, prompts) of one arm; the base's one row stands for all seeds."""
    return np.array([row[name] for row in rows if row["arm"] == arm])


def contrast(rows: Sequence[dict[str, Any]], a: str, b: str, name: str) -> tuple[float, float, float, list[float]]:
    """(mean, low, high) of b - a, and the means of the seeds."""
    found = gathered(rows, b, name) - gathered(rows, a, name)
    low, high = bootstrap(found.mean(0)[None], 5000, np.random.default_rng(0))[0]
    return float(found.mean()), float(low), float(high), found.mean(1).tolist()


CLAIMS = (
    ("rounds of online DPO beat one round of as many pairs and steps", "online DPO, one round", "online DPO, rounds",
     "gold", "above"),
    ("SPIN improves on its start without any judge", "fine-tuning on real images", "SPIN, rounds", "gold", "above"),
    ("curated retraining without real images loses diversity", SHORT, "curated, no real images", "vendi", "below"),
    ("with 25 % real images it does not", SHORT, "curated, 25 % real images", "vendi", "not below"),
    ("25 % real images keep diversity", "curated, no real images", "curated, 25 % real images", "vendi", "above"),
)  # fmt: skip


def holds(found: tuple[float, float, float, list[float]], wanted: str) -> bool:
    """Whether the interval lies above or below 0; "not below": it does not lie below."""
    return {"above": found[1] > 0, "below": found[2] < 0, "not below": found[2] >= 0}[wanted]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The arms (mean over seeds, against the base), then the claims with the interval that decides each."""
    lines = ["| policy | gold score | against the base | all right | Vendi score | against the base |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for arm in dict.fromkeys(row["arm"] for row in rows):
        gold, right, vendi = (gathered(rows, arm, name).mean() for name in MEASURES)
        base = SHORT if arm.startswith("curated") else BASE
        against = ["" if arm in (BASE, SHORT) else _said(contrast(rows, base, arm, name)) for name in ("gold", "vendi")]
        lines.append(f"| {arm} | {gold:.3f} | {against[0]} | {right:.1%} | {vendi:.3f} | {against[1]} |")
    lines += ["", "| claim | measured | difference | each seed | |", "| --- | --- | ---: | --- | --- |"]
    for text, a, b, name, wanted in CLAIMS:
        found = contrast(rows, a, b, name)
        seeds = ", ".join(f"{value:+.3f}" for value in found[3])
        verdict = "holds" if holds(found, wanted) else "**fails**"
        lines.append(f"| {text} | {name}: {b} - {a} | {_said(found)} | {seeds} | {verdict} |")
    seconds = sum(sum(row["seconds"].values()) for row in rows)
    return "\n".join([*lines, "", f"{seconds:.0f} CPU seconds."])


def _said(found: tuple[float, float, float, list[float]]) -> str:
    return f"{found[0]:+.3f} [{found[1]:+.3f}, {found[2]:+.3f}]"


def main() -> None:
    """Read the command line, run all arms, print the table; status 1 where a claim fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for data, policies and results")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="dev: for tuning")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = table(asked.out, asked.seeds, Sizes(split=asked.split))
    print(markdown(rows))
    sys.exit(0 if all(holds(contrast(rows, a, b, name), wanted) for _, a, b, name, wanted in CLAIMS) else 1)


if __name__ == "__main__":
    main()
