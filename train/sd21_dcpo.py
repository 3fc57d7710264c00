"""DCPO on Stable Diffusion 2.1: each image under its own caption.

Paper: DCPO, arXiv 2502.06023.
beta: 500 of the README; the half and the mean of Diffusion-DPO's code, from which it is derived, are assumed.
Learning rate: 1e-8 there, scaled by 128 pairs a GPU; how many GPUs is unstated, one is assumed: 1.28e-6.
From the README: warm-up 500 of 2000 steps, fp16. Empty prompts as in Diffusion-DPO. Which SD2.1 is unstated: the base
one of 512 pixels is chosen, for the code it comes from accepts no v-prediction.
Data: Pick-Double-Caption, 20,000 pairs, with a caption of its own for each image (field caption).
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, Full, Run, Schedule

run = Run(
    model="stabilityai/stable-diffusion-2-1-base",
    family="sd",
    objective=DPO(beta=500.0),
    policy=Full(),
    captions="own",
    resolution=512,
    steps=2000,
    batch=128,
    micro_batch=1,
    optimizer=AdamW(lr=1.28e-6),
    schedule=Schedule(warmup=500),
    caption_dropout=0.2,
)
