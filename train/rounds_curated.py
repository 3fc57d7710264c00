"""Curated retraining: each round draws K images of a prompt, keeps one of them, and fine-tunes on what was kept.

A share of real images keeps the model from collapsing onto what the scorer likes best; without it the paper proves
that it collapses. A round is a folder; the same command goes on where it was interrupted.
Paper: Ferbach et al., NeurIPS 2024 (self-consuming models with curated data).

    python train/rounds_curated.py --prompts prompts.txt --out runs/curated --real runs/real --real-share 0.25
"""

import dataclasses
from pathlib import Path

from diffalign import cli
from diffalign.objectives import SFT
from diffalign.pairing import pair
from diffalign.recipes import start_of
from diffalign.run import AdamW, LoRA, Run
from diffalign.sampling import sample
from diffalign.scoring import score
from diffalign.training import train

RUN = Run(
    model="shapes/sdxl",
    objective=SFT(),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)


def rounds(
    *, prompts: Path, out: Path, run: Run = RUN, rounds: int = 3, per_prompt: int = 4, scorer: str = "shapes_clip",
    temperature: float | None = None, real: Path | None = None, real_share: float = 0.0, steps: int = 10,
    guidance: float = 2.0, batch: int = 32,
) -> str:  # fmt: skip
    """Draw, score, keep one of K and train, so many times; the last policy is at OUT/round-N/run.

    Args:
        prompts: Text file with one prompt a line.
        out: Folder to write, a folder a round below it.
        run: What every round trains; its data, out and start are the round's own.
        rounds: How often.
        per_prompt: K, images of a prompt.
        scorer: By whom one is kept.
        temperature: Of the Bradley-Terry choice among them; none keeps the best.
        real: Record folder of real images; of a judged one the winners.
        real_share: Their share in what is trained on.
        steps: Denoising steps.
        guidance: Guidance scale.
        batch: Images per denoiser call.
    """
    last = start_of(run)
    for number in range(1, rounds + 1):
        here = out / f"round-{number}"
        lora = (str(last),) if last else ()
        sample(
            model=run.model, lora=lora, prompts=prompts, out=here / "images", per_prompt=per_prompt,
            seed=run.seed + number, steps=steps, guidance=guidance, batch=batch,
        )  # fmt: skip
        score(here / "images", scorer=(scorer,), out=here / "scores")
        pair(
            here / "scores", rule="curated", temperature=temperature, real=real, real_share=real_share,
            out=here / "kept", seed=run.seed + number,
        )  # fmt: skip
        policy = dataclasses.replace(run.policy, start=str(last or ""))
        train(dataclasses.replace(run, policy=policy, data=str(here / "kept"), out=str(here / "run")))
        last = here / "run"
    return f"{last}: the policy of round {rounds}; next: diffalign sample --lora {last} …"


if __name__ == "__main__":
    cli.script(rounds, "rounds_curated.py")
