"""SmPO on Stable Diffusion XL: states by ReNoise inversion, labels as soft as a scorer's.

Paper: SmPO-Diffusion, arXiv 2506.02698.
beta: 5000 there and here (half, mean). gamma: 10.
Learning rate: 1e-8 there, scaled by 1024 pairs to 1.024e-5.
From the code: 10 steps of inversion by the policy with one ReNoise look each, 200 steps, warm-up 100, empty prompts
0.2, from the base model. There Adafactor, here AdamW. Its grid overshoots (Inversion(legacy=True)); here it is exact.
Data: pairs with P from PickScore, e^n / (e^n + e^m) of cosines normalised to [0.1154, 0.2820].
Hardware: 151 GPU hours, by second-hand notes.
"""

from diffalign.inversion import Inversion
from diffalign.objectives import SmPO
from diffalign.run import AdamW, Full, Run, Schedule, States

run = Run(
    model="stabilityai/stable-diffusion-xl-base-1.0",
    family="sdxl",
    objective=SmPO(beta=5000.0, gamma=10.0),
    policy=Full(),
    states=States(inversion=Inversion(steps=10, renoise=1)),
    resolution=1024,
    steps=200,
    batch=1024,
    micro_batch=1,
    optimizer=AdamW(lr=1.024e-5),
    schedule=Schedule(warmup=100),
    caption_dropout=0.2,
)
