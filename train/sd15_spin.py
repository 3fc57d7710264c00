"""SPIN-Diffusion on Stable Diffusion 1.5: real images against the model's own, in rounds.

Paper: SPIN-Diffusion; its training code could not be had.
beta: unverified; 5000 is chosen, that of Diffusion-DPO's code (half, mean).
From the model cards: 2e-5, AdamW, linear schedule with warm-up 200, 500 steps of 8 x 8 x 32 = 2048 pairs a round
(the cards of rounds 1 and 3 say the same).
A round: draw the training prompts with the last round's model, pair each winner with it (winner first), train with
that model as --model; it is then the reference too. Three rounds in the paper.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, Full, Run, Schedule

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=DPO(beta=5000.0),
    policy=Full(),
    resolution=512,
    steps=500,
    batch=2048,
    micro_batch=8,
    optimizer=AdamW(lr=2e-5),
    schedule=Schedule(shape="linear", warmup=200),
)
