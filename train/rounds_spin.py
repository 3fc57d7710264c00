"""SPIN-Diffusion: real images against those of the last round's policy, its opponent and reference; no judge.

Before the first round the real images are learnt by supervised fine-tuning, unless run.policy.start names an adapter
to begin with. A round is a folder; the same command goes on where it was interrupted.
Paper: SPIN-Diffusion; three rounds there, and the same real images in each.

    python train/rounds_spin.py --real runs/real --out runs/spin
"""

import dataclasses
import json
from pathlib import Path

from diffalign import cli, folders
from diffalign.objectives import DPO, SFT
from diffalign.pairing import pair
from diffalign.recipes import start_of
from diffalign.run import AdamW, LoRA, Run
from diffalign.sampling import sample
from diffalign.training import train

RUN = Run(
    model="shapes/sdxl",
    objective=DPO(beta=1000.0),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)


def rounds(
    *, real: Path, out: Path, run: Run = RUN, rounds: int = 3, fine_tuning: int = 60, per_prompt: int = 1,
    steps: int = 10, guidance: float = 2.0, batch: int = 32,
) -> str:  # fmt: skip
    """Fine-tune, then draw, pair and train, so many times; the last policy is at OUT/round-N/run.

    Args:
        real: Record folder of real images; of a judged one (import, pair, filter) the winners.
        out: Folder to write, a folder a round below it.
        run: What every round trains; its data, out and start are the round's own.
        rounds: How often.
        fine_tuning: Steps on the real images before the first round, where run.policy.start is empty.
        per_prompt: Images drawn for a prompt.
        steps: Denoising steps.
        guidance: Guidance scale.
        batch: Images per denoiser call.
    """
    last = start_of(run)
    if last is None:
        last = out / "round-0" / "run"
        pair(real, rule="desirable", out=out / "round-0" / "pairs")
        places = {"data": str(out / "round-0" / "pairs"), "out": str(last)}
        train(dataclasses.replace(run, objective=SFT(), steps=fine_tuning, **places))
    wanted = {row["prompt_id"] for row in folders.image_rows(real).values()}
    known = folders.texts(real).items()
    texts = "".join(json.dumps({"text": text, "id": name}) + "\n" for name, text in known if name in wanted)
    folders.write_atomically(out / "prompts.jsonl", texts.encode())
    for number in range(1, rounds + 1):
        here = out / f"round-{number}"
        lora = (str(last),) if last else ()
        sample(
            model=run.model, lora=lora, prompts=out / "prompts.jsonl", out=here / "images", per_prompt=per_prompt,
            seed=run.seed + number, steps=steps, guidance=guidance, batch=batch,
        )  # fmt: skip
        pair(here / "images", rule="real_vs_generated", real=real, out=here / "pairs")
        policy = dataclasses.replace(run.policy, start=str(last))
        train(dataclasses.replace(run, policy=policy, data=str(here / "pairs"), out=str(here / "run")))
        last = here / "run"
    return f"{last}: the policy of round {rounds}; next: diffalign sample --lora {last} …"


if __name__ == "__main__":
    cli.script(rounds, "rounds_spin.py")
