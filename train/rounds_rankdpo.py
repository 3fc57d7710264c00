"""Iterative RankDPO: each round draws lists with the last round's policy, ranks them by a scorer, and trains on.

The policy that a round starts from is its reference. Every round sees its own share of the prompts. A round is a
folder; the same command goes on where it was interrupted.
Paper: RankDPO, arXiv 2410.18013 (there one round, lists of four models' pictures); the rounds are ours.

    python train/rounds_rankdpo.py --prompts prompts.txt --out runs/ranked
"""

import dataclasses
import json
from pathlib import Path

from diffalign import cli, folders
from diffalign.objectives import RankDPO
from diffalign.pairing import pair
from diffalign.prompts import read_prompts
from diffalign.recipes import start_of
from diffalign.run import AdamW, LoRA, Run, States
from diffalign.sampling import sample
from diffalign.scoring import score
from diffalign.training import train

RUN = Run(
    model="shapes/sdxl",
    objective=RankDPO(beta=2000.0),
    policy=LoRA(rank=16, alpha=16.0),
    states=States(noise="independent"),
    resolution=64,
    steps=40,
    batch=8,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)


def rounds(
    *, prompts: Path, out: Path, run: Run = RUN, rounds: int = 3, per_prompt: int = 4, top: int = 0,
    scorer: str = "shapes_clip", steps: int = 10, guidance: float = 2.0, batch: int = 32,
) -> str:  # fmt: skip
    """Draw, score, rank and train, so many times; the last policy is at OUT/round-N/run.

    Args:
        prompts: Text file with one prompt a line; round i of n takes every n-th from the i-th.
        out: Folder to write, a folder a round below it.
        run: What every round trains; its data, out and start are the round's own.
        rounds: How often.
        per_prompt: Images of a prompt.
        top: How many of them a ranking holds, the best; 0 means all.
        scorer: By whom they are ranked.
        steps: Denoising steps.
        guidance: Guidance scale.
        batch: Images per denoiser call.
    """
    last, listed = start_of(run), read_prompts(prompts).prompts
    for number in range(rounds):
        here = out / f"round-{number + 1}"
        mine = "".join(json.dumps({"text": p.text, "id": p.id}) + "\n" for p in listed[number::rounds])
        folders.write_atomically(here / "prompts.jsonl", mine.encode())
        lora = (str(last),) if last else ()
        sample(
            model=run.model, lora=lora, prompts=here / "prompts.jsonl", out=here / "images", per_prompt=per_prompt,
            seed=run.seed + number, steps=steps, guidance=guidance, batch=batch,
        )  # fmt: skip
        score(here / "images", scorer=(scorer,), out=here / "scores")
        pair(here / "scores", rule="ranking", top=top, out=here / "rankings")
        policy = dataclasses.replace(run.policy, start=str(last or ""))
        train(dataclasses.replace(run, policy=policy, data=str(here / "rankings"), out=str(here / "run")))
        last = here / "run"
    return f"{last}: the policy of round {rounds}; next: diffalign sample --lora {last} …"


if __name__ == "__main__":
    cli.script(rounds, "rounds_rankdpo.py")
