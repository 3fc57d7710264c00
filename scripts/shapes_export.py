"""Finished models: fp16 safetensors in the layouts that diffusers and open_clip load by themselves."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from diffalign.checkpoint import publish, scratch

LIMIT = 12 * 2**20


def pipeline(folder: Path) -> DiffusionPipeline:
    """The pipeline of a folder, in float32; components that its index gives as null are left out (SD3 without T5)."""
    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name, entry in index.items() if isinstance(entry, list) and entry[0] is None}
    pipe = DiffusionPipeline.from_pretrained(folder, **absent, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def export(name: str, work: Path, assets: Path) -> None:
    """Write a trained pipeline, with the finished decoder if there is one, in fp16."""
    pipe = pipeline(work / name / "pipeline")
    finished = work / "vae" / "model"
    pipe.vae = AutoencoderKL.from_pretrained(finished if finished.exists() else work / "vae-latents")
    temporary = scratch(assets / name)
    pipe.to(torch.float16).save_pretrained(temporary)
    forget_places(temporary)
    check(temporary)
    publish(assets / name, temporary)


def forget_places(folder: Path) -> None:
    """Take out of a pipeline's files where its parts lay when they were read."""
    for path in folder.rglob("*.json"):
        known = json.loads(path.read_text())
        if isinstance(known, dict) and known.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(known, indent=2) + "\n")


def export_proxy(work: Path, assets: Path) -> None:
    """Copy the proxy, which is stored as fp16 already."""
    temporary = scratch(assets / "clip")
    shutil.copytree(work / "clip" / "model", temporary, dirs_exist_ok=True)
    check(temporary)
    publish(assets / "clip", temporary)


def check(folder: Path) -> None:
    """Raise ValueError where a model takes more than 12 MiB."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ValueError(f"{folder.name}: {size / 2**20:.1f} MiB, expected at most {LIMIT / 2**20:.0f}")
