"""DDIM-InPO on Stable Diffusion XL: states by inversion.

Paper: DDIM-InPO, arXiv 2503.18454.
beta: 5000 there and here (half, mean).
Learning rate: 1e-8 there, scaled by 8 x 128 pairs to 1.024e-5.
From the code: 10 steps of inversion by the policy without guidance, 0.1 of DDIM's noise after each, 400 steps, warm-up
200, empty prompts 0.2, from the base model. There Adafactor, here AdamW. Its grid overshoots the time
(Inversion(legacy=True)); here states are exact.
"""

from diffalign.inversion import Inversion
from diffalign.objectives import DPO
from diffalign.run import AdamW, Full, Run, Schedule, States

run = Run(
    model="stabilityai/stable-diffusion-xl-base-1.0",
    family="sdxl",
    objective=DPO(beta=5000.0),
    policy=Full(),
    states=States(inversion=Inversion(steps=10, noise=0.1)),
    resolution=1024,
    steps=400,
    batch=1024,
    micro_batch=1,
    optimizer=AdamW(lr=1.024e-5),
    schedule=Schedule(warmup=200),
    caption_dropout=0.2,
)
