"""Alpha-DPO on Stable Diffusion XL: the divergence follows the batch's accuracy.

Paper: Alpha-DPO via alpha-divergence (ICLR 2026).
beta: 4000 of the authors' launcher, in the convention used here (half, mean). alpha: 0.9999 times the mean p.
Learning rate: 8.192e-9 there, scaled by 8 x 4 x 64 = 2048 pairs to 1.678e-5.
From the code: constant after 200 steps of warm-up, 600 steps (README; the launcher's 2000 is its upper end). There
Adafactor, here AdamW. Empty prompts: as in Diffusion-DPO's code, from which it is derived.
Its mean p is a micro-batch's over all GPUs (parity "micro"), here the optimizer batch's.
"""

from diffalign.objectives import AlphaDPO
from diffalign.run import AdamW, Full, Run, Schedule

run = Run(
    model="stabilityai/stable-diffusion-xl-base-1.0",
    family="sdxl",
    objective=AlphaDPO(beta=4000.0, alpha=0.9999),
    policy=Full(),
    resolution=1024,
    steps=600,
    batch=2048,
    micro_batch=4,
    optimizer=AdamW(lr=1.678e-5),
    schedule=Schedule(warmup=200),
    caption_dropout=0.2,
)
