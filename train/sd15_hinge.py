"""Hinge loss on Stable Diffusion 1.5: LoRA.

Paper: SLiC, arXiv 2305.10425, on the implicit reward; loss_type="hinge" of diffusers' research script for SD1.5.
beta: unstated in its command; 5000 as in its SDXL script, without the half there and so 10000 here.
From the code: LoRA 8 with alpha = rank, constant 1e-5 without warm-up, 10000 steps of 2 x 16 pairs, no empty
prompts. There AdamW in 8 bits, here in 32.
"""

from diffalign.objectives import Hinge
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=Hinge(beta=10000.0),
    policy=LoRA(rank=8, alpha=8.0),
    resolution=512,
    steps=10000,
    batch=32,
    micro_batch=16,
    optimizer=AdamW(lr=1e-5),
)
