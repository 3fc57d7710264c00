"""DMPO on Stable Diffusion 1.5: reverse KL to a target margin.

Paper: DMPO, arXiv 2507.07510; the numbers are those of Diffusion-SDPO's code, which implements it.
beta: 2000 there and here (half, mean). alpha: 0.01.
Learning rate: 1e-8 there, scaled by a batch of 8 x 32 pairs a GPU; how many GPUs is unstated, 8 are assumed, which
gives 2048 pairs and 2.048e-5, those of Diffusion-DPO.
From the code: constant after 500 steps of warm-up, 2000 steps, bf16. Empty prompts as in Diffusion-DPO.
"""

from diffalign.objectives import DMPO
from diffalign.run import AdamW, Full, Run, Schedule

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=DMPO(beta=2000.0, alpha=0.01),
    policy=Full(),
    resolution=512,
    steps=2000,
    batch=2048,
    micro_batch=1,
    optimizer=AdamW(lr=2.048e-5),
    schedule=Schedule(warmup=500),
    caption_dropout=0.2,
)
