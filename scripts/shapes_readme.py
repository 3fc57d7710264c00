"""The README of the embedded models, written from the measured figures."""

import json
from pathlib import Path

HEAD = """# Embedded models

Small models of the embedded world (64 px pictures of one or two shapes), fp16, in diffusers' and open_clip's layouts.
They are trained by `python scripts/build_shapes.py all`; every number below is written by
`python scripts/build_shapes.py figures` on prompts of the dev split, by the gold scorer, which reads the pixels and of
which no training sees anything. Captions of the dev and test splits are held out from all training.

| folder | what | parameters (millions) | MiB |
| --- | --- | --- | --- |
"""

WHAT = {
    "sdxl": "`StableDiffusionXLPipeline`: UNet, epsilon, two CLIP text encoders, autoencoder",
    "sd3": "`StableDiffusion3Pipeline`: DiT, rectified flow, two CLIP text encoders, no T5, the same autoencoder; "
    "call it with `max_sequence_length=1`, the zeros for T5 that it was trained with, and little or no guidance",
    "clip": "open_clip model, the proxy reward",
}
ERRS = "Half of the training captions were wrong in one or two attributes, so that it errs."
HOW = {
    "sd3": """It imitates the embedded UNet's predictions under guidance 1.75, from random weights on, so that the
demonstration draws it without guidance, at half the cost. All of `build_shapes.py sd3 --threads 2`, its pictures and
latents included, took 83.8 minutes of processor on two cores that multiply in bfloat16, 46 by the clock beside four
other processes; cores that do not need hours.""",
}
ATTRIBUTES = (
    "all right",
    "attributes right",
    "score",
    "count",
    "shape",
    "colour",
    "size",
    "fill",
    "background",
    "place",
)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def readme(work: Path, assets: Path) -> None:
    """Write `README.md` of the assets from `figures.json` in the work folder."""
    known = json.loads((work / "figures.json").read_text())
    there = {name: what for name, what in WHAT.items() if (assets / name).exists()}
    rows = [f"| `{n}/` | {w} | {parameters(assets / n):.1f} | {mebibytes(assets / n):.1f} |" for n, w in there.items()]
    text = [HEAD + "\n".join(rows), autoencoder(known["vae"])]
    text += [generator(name, known[name]) for name in ("sdxl", "sd3") if name in known]
    text.append(proxy(known["clip"]))
    (assets / "README.md").write_text("\n\n".join(text) + "\n")


def parameters(folder: Path) -> float:
    """Millions of numbers in the weight files (two bytes each)."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 2e6


def mebibytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def autoencoder(found: dict) -> str:
    """Reconstruction, and how the latents are distributed."""
    low, high, mean = (f"{found[name]:.2f}" for name in ("std_low", "std_high", "mean_high"))
    clean, drawn = (percent(found[name]["attributes right"]) for name in ("render", "reconstruction"))
    return f"""## Autoencoder

64 x 64 pixels to 8 x 8 latents of 12 channels; scaling factor 1, shift 0. Over {found["count"]} fresh renders each
channel's mean is within {mean} of 0, its standard deviation between {low} and {high}; the posterior's is 0.1.
Gold attributes right: {clean} on the renders, {drawn} on their reconstructions; mean absolute error of a pixel
{255 * found["error"]:.1f} of 255.

These weights were made in more pieces than the script now does it: 1,586 steps with every pixel alike, then 1,100 and
600 steps with weight on the objects, then the decoder alone. (The proxy's learning rate was set for 1,600, then 1,000,
then 1,800 steps.)"""


def generator(name: str, found: dict) -> str:
    """Gold figures at the chosen steps and guidances."""
    each = [(g, found[f"guidance {g}"]) for g in found["guidances"]]
    columns = [
        (f"{much} object{'s' * (much == 'two')}, guidance {g}", of[much]) for g, of in each for much in ("one", "two")
    ]
    rows = [
        f"| {a} | {' | '.join(percent(of[a]) if a in of else '' for _, of in columns)} |"
        for a in ATTRIBUTES
        if a in columns[0][1]
    ]
    more = f"\n\n{HOW[name]}" if name in HOW else ""
    return f"""## {name}

{found["steps"]} steps of its own scheduler, four pictures of each of {found["prompts"]}
dev prompts ({name}.png shows 64, guidance {each[0][0]}). {ERRS}{more}

| gold | {" | ".join(title for title, _ in columns)} |
| --- |{" --- |" * len(columns)}
""" + "\n".join(rows)


def proxy(found: dict) -> str:
    """How well the proxy predicts the gold score."""
    rows = [
        f"| {name} | {percent(of['any difference'])} of {of['pairs']} | {percent(of['an attribute'])} |"
        for name, of in found.items()
    ]
    low = [name for name, of in found.items() if of["an attribute"] < 0.75]
    missed = f"; missed on {' and '.join(low)}" if low else ""
    return f"""## Proxy

How often the proxy (open_clip, cosine of picture and prompt) prefers the picture that the gold score prefers, of two
pictures of one dev prompt: wherever the gold scores differ, and where they differ by more than 0.1 (an attribute).
The aim is 75 to 95 % of the latter, good enough to align and bad enough to be hacked{missed}.

| pictures of | any difference | an attribute's difference |
| --- | --- | --- |
""" + "\n".join(rows)
