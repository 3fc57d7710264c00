"""Diffusion-DPO on Stable Diffusion XL: full fine-tuning on human pairs.

Paper: Diffusion-DPO, arXiv 2311.12908.
beta: 5000 in the paper and in the code, in the convention used here (half, mean).
Learning rate, a trap: the launcher's 1e-8 is scaled by the batch of 2048 to 2.048e-5, which this is; the paper
prints 2.048e-8 * 2000 / beta, 8.2e-9.
From the code: constant after 200 steps of warm-up, 2000 steps of 2048 pairs, uniform times, one noise a pair, empty
prompts 0.2. There Adafactor (no relative step), here AdamW at the same rate. The VAE in fp16 needs the fp16-fix one.
Data: Pick-a-Pic v2 without ties, 851,293 pairs.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, Full, Run, Schedule

run = Run(
    model="stabilityai/stable-diffusion-xl-base-1.0",
    family="sdxl",
    objective=DPO(beta=5000.0),
    policy=Full(),
    resolution=1024,
    steps=2000,
    batch=2048,
    micro_batch=1,
    optimizer=AdamW(lr=2.048e-5),
    schedule=Schedule(warmup=200),
    caption_dropout=0.2,
)
