"""Online DPO: each round draws with the last round's policy, pairs best with worst, and trains on from there.

The policy that a round starts from is its reference; refresh = N > 0 copies the policy into it every N steps, too.
Every round sees its own share of the prompts. A round is a folder; the same command goes on where it was interrupted.
Paper: iterative DPO as compared in Flow-GRPO, arXiv 2505.05470 (there best against worst, reference every 40 steps).

    python train/rounds_online_dpo.py --prompts prompts.txt --out runs/online --run.objective.beta 1000
"""

import dataclasses
import json
from pathlib import Path

from diffalign import cli, folders
from diffalign.objectives import DPO
from diffalign.pairing import pair
from diffalign.prompts import read_prompts
from diffalign.recipes import start_of
from diffalign.run import AdamW, Frozen, HardCopy, LoRA, Run, Schedule
from diffalign.sampling import sample
from diffalign.scoring import score
from diffalign.training import train

RUN = Run(
    model="shapes/sdxl",
    objective=DPO(beta=1000.0),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    schedule=Schedule("linear", warmup=5),
    log_every=5,
    save_every=40,
)


def rounds(
    *, prompts: Path, out: Path, run: Run = RUN, rounds: int = 3, per_prompt: int = 4, scorer: str = "shapes_clip",
    refresh: int = 0, steps: int = 10, guidance: float = 2.0, batch: int = 32,
) -> str:  # fmt: skip
    """Draw, score, pair and train, so many times; the last policy is at OUT/round-N/run.

    Args:
        prompts: Text file with one prompt a line; round i of n takes every n-th from the i-th.
        out: Folder to write, a folder a round below it.
        run: What every round trains; its data, out and start are the round's own.
        rounds: How often.
        per_prompt: Images of a prompt.
        scorer: By whom best and worst are told apart.
        refresh: Steps between copies of the policy into the reference; 0 means once a round.
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
        pair(here / "scores", rule="best_vs_worst", out=here / "pairs")
        policy = dataclasses.replace(run.policy, start=str(last or ""))
        reference = HardCopy(refresh) if refresh else Frozen()
        places = {"data": str(here / "pairs"), "out": str(here / "run")}
        train(dataclasses.replace(run, policy=policy, reference=reference, **places))
        last = here / "run"
    return f"{last}: the policy of round {rounds}; next: diffalign sample --lora {last} …"


if __name__ == "__main__":
    cli.script(rounds, "rounds_online_dpo.py")
