"""Train the embedded models, write them as fp16 pipelines, and measure them.

    python scripts/build_shapes.py all    # in this order; each stage goes on where it was interrupted
    python scripts/build_shapes.py sdxl --steps 300 --work build/trial

Each stage takes one core, or --threads of them; sd3 imitates sdxl, so it comes after it. A stage takes at most 45
minutes; sd3 does so with --threads 2 (84 minutes of processor), where the cores multiply in bfloat16.
"""

from pathlib import Path
from typing import Literal, get_args

import torch
import tyro
from shapes_autoencoder import train_both, train_decoder
from shapes_clip import train_clip
from shapes_denoisers import RECIPES, train_generator
from shapes_export import export, export_proxy
from shapes_figures import figures, tune

Stage = Literal["vae", "decoder", "clip", "sdxl", "sd3", "tune", "export", "figures", "all"]
STEPS = {"vae": 3400, "decoder": 1200, "clip": 1800, "sdxl": 6000, "sd3": 5500}


def build(
    stage: tyro.conf.Positional[Stage],
    /,
    *,
    steps: int | None = None,
    threads: int = 1,
    work: Path = Path("build/shapes"),
    assets: Path = Path("assets/shapes"),
) -> None:
    """Run one stage of building the embedded models.

    Args:
        stage: vae: encoder and decoder; decoder: the decoder alone, on; clip, sdxl, sd3: the models; tune: gold figures
            over steps and guidance; export: fp16 folders; figures: measure all and write the README; all: all but tune.
        steps: Training steps, where not the stage's own number.
        threads: Processor cores to take.
        work: Folder of checkpoints and intermediate files.
        assets: Folder of the finished models.
    """
    work.mkdir(parents=True, exist_ok=True)
    assets.mkdir(parents=True, exist_ok=True)
    if stage == "all":
        for each in get_args(Stage)[:-1]:
            if each != "tune":
                build(each, steps=steps, threads=threads, work=work, assets=assets)
        return
    torch.set_num_threads(threads)
    number = steps or STEPS.get(stage, 0)
    if stage == "vae":
        train_both(work, number)
    elif stage == "decoder":
        train_decoder(work, number)
    elif stage == "clip":
        train_clip(work, number)
    elif stage in RECIPES:
        train_generator(RECIPES[stage], work, number)
    elif stage == "export":
        for name in RECIPES:
            if (work / name / "pipeline").exists():
                export(name, work, assets)
        export_proxy(work, assets)
    elif stage == "tune":
        for name in RECIPES:
            if (assets / name).exists():
                tune(name, assets)
    else:
        figures(work, assets)


if __name__ == "__main__":
    tyro.cli(build)
