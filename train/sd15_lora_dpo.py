"""Diffusion-DPO on Stable Diffusion 1.5: LoRA, what fits one small GPU.

Paper: Diffusion-DPO, arXiv 2311.12908; the numbers are those of diffusers' research script for SD.
beta: 2500 there without the half, 5000 here (half, mean).
From its README: LoRA 8 with alpha = rank, constant 1e-5 without warm-up, 10000 steps of 2 x 16 pairs, no empty prompts.
There AdamW in 8 bits and flips of both images, here in 32 and none.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=DPO(beta=5000.0),
    policy=LoRA(rank=8, alpha=8.0),
    resolution=512,
    steps=10000,
    batch=32,
    micro_batch=16,
    optimizer=AdamW(lr=1e-5),
)
