"""Imported once by the server of `commands`: what a command would otherwise import and set up in every process."""

import tempfile
from pathlib import Path

import tiny
import torch

from diffalign import demo, sampling

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as place:
    for family in ("sdxl", "sd3"):
        model = tiny.save(family, Path(place) / family)
        (Path(place) / "prompts.txt").write_text("a red circle\n")
        demo.sample(model=str(model), prompts=Path(place) / "prompts.txt", out=Path(place) / f"{family}-out", steps=1)
assert sampling.Artist
