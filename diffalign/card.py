"""The model card of a policy: where it comes from, how it was made, and what is known of its worth."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign import weights

SAYS = {
    "weights": 'pipe.{part} = AutoModel.from_pretrained("…", subfolder="{part}")',
    "diffusers": 'pipe.load_lora_weights("…")',
    "unloaded": "# of this family diffusers loads no adapters: diffalign convert … --model {name} --to merged --out m\n"
    'pipe = DiffusionPipeline.from_pretrained("m")',
    "merged": 'pipe = DiffusionPipeline.from_pretrained("…")',
}


@dataclass(frozen=True)
class Known:
    """What is known of a policy: its run's configuration ({} of a mere adapter), a comparison's data, its pictures."""

    run: Mapping[str, Any]
    compared: Mapping[str, Any]
    pictures: Sequence[tuple[str, str]]


def write(known: Known, *, model: str, to: str, part: str = "") -> str:
    """README.md of an exported policy: a header that the hub reads, then base, worth, pictures, method, use, licence.

    `to` says what the folder holds: an adapter ("diffusers", or "unloaded" where diffusers' pipeline takes none), a
    whole model ("merged"), or the trained weights of its `part` alone ("weights"). `known.compared` is what `compare`
    writes; `known.pictures` are (file, prompt).
    """
    run = known.run
    # a path that is no longer there still is none of the hub's
    hub = weights.on_hub(model) and not Path(model).exists()
    name = model if hub or model.startswith("shapes/") else Path(model).name
    method = run.get("objective", {}).get("class", "").rpartition(":")[2]
    tags = [
        "text-to-image",
        "diffusion",
        "preference-alignment",
        "diffalign",
        *(["lora"] if to in ("diffusers", "unloaded") else []),
    ]
    header = ["---", *([f"base_model: {name}"] if hub else []), "library_name: diffusers", "tags:"]
    lines = [*header, *(f"- {tag}" for tag in tags), "---", "", f"# {name}, aligned{f' by {method}' if method else ''}"]
    lines += ["", f"Base model: {name}. Made with diffalign.", ""]
    if scorers := known.compared.get("scorers"):
        lines += ["## Against the base model", "", "| scorer | win rate | 95 % interval |", "| --- | --- | --- |"]
        lines += [
            f"| {n} | {v['win_rate']:.1%} | {v['win_rate_low']:.1%} to {v['win_rate_high']:.1%} |"
            for n, v in scorers.items()
        ]
        lines += ["", f"Paired, over {known.compared['prompts']} prompts, ties counted half.", ""]
    if known.pictures:
        lines += ["## Pictures", "", *(f"![{prompt}]({file})" for file, prompt in known.pictures), ""]
    if run:
        lines += ["## Training", "", "| setting | value |", "| --- | --- |"]
        lines += [f"| {key} | {value} |" for key, value in settings(run)]
        lines.append("")
    also = "AutoModel, " if to == "weights" else ""
    lines += ["## Use", "", "```python", f"from diffusers import {also}DiffusionPipeline", ""]
    if to in ("weights", "diffusers"):
        place = f'"…")  # {name}, as a folder' if name.endswith(".safetensors") else f'"{name}")'
        lines.append(f"pipe = DiffusionPipeline.from_pretrained({place}")
    lines += [
        SAYS[to].format(part=part, name=name),
        'image = pipe("a photo of a cat").images[0]',
        "```",
        "",
        "## Licence",
        "",
    ]
    lines.append("The weights derive from the base model, whose licence holds for them; see its own card.")
    return "\n".join(lines) + "\n"


def settings(run: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The fields of a run's data, nested ones by dotted name, each class by its own name; of paths the last part."""
    rows = []
    for key, value in run.items():
        name = f"{prefix}{key}"
        if name in ("data", "out", "model", "config", "push"):
            continue
        if key in ("init_lora", "start", "path"):
            rows.append((name, Path(value).name))
            continue
        if isinstance(value, Mapping):
            rows.append((name, value["class"].rpartition(":")[2]))
            rows += [(k, v) for k, v in settings(value, f"{name}.") if k != f"{name}.class"]
        else:
            rows.append((name, value if isinstance(value, str) else json.dumps(value)))
    return rows
