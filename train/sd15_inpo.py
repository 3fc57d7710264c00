"""DDIM-InPO on Stable Diffusion 1.5: states by inversion.

Paper: DDIM-InPO, arXiv 2503.18454.
beta: 2000 there and here (half, mean).
Learning rate: 1e-8 there, scaled by 8 x 128 pairs to 1.024e-5.
From the code: 10 steps of inversion by the policy without guidance, 0.1 of DDIM's noise after each, 400 steps, warm-up
200, empty prompts 0.2; it starts from weights fine-tuned on winners (sd15_sft), policy and reference alike: give
those as --model. Its grid overshoots the time (Inversion(legacy=True)); here states are exact.
"""

from diffalign.inversion import Inversion
from diffalign.objectives import DPO
from diffalign.run import AdamW, Full, Run, Schedule, States

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=DPO(beta=2000.0),
    policy=Full(),
    states=States(inversion=Inversion(steps=10, noise=0.1)),
    resolution=512,
    steps=400,
    batch=1024,
    micro_batch=1,
    optimizer=AdamW(lr=1.024e-5),
    schedule=Schedule(warmup=200),
    caption_dropout=0.2,
)
