"""Diffusion-DPO on Stable Diffusion XL: LoRA, what fits one GPU.

Paper: Diffusion-DPO, arXiv 2311.12908; the numbers are those of diffusers' research script for SDXL.
beta: 5000 there and here (half, mean).
From the code: LoRA 8 with alpha = rank, constant 1e-5 without warm-up, 2000 steps of 2 x 8 pairs, no empty prompts,
ties kept (read as wins of the first image; here they are ties). There AdamW in 8 bits, here in 32.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="stabilityai/stable-diffusion-xl-base-1.0",
    family="sdxl",
    objective=DPO(beta=5000.0),
    policy=LoRA(rank=8, alpha=8.0),
    resolution=1024,
    steps=2000,
    batch=16,
    micro_batch=8,
    optimizer=AdamW(lr=1e-5),
)
