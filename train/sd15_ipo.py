"""IPO on Stable Diffusion 1.5: LoRA.

Paper: IPO, arXiv 2310.12036; loss_type="ipo" of diffusers' research script for SD1.5, which crashes as published.
beta: unstated in its command; 5000 as in its SDXL script, without the half there and so 10000 here. There
(margin - 1 / (2 beta))^2 without beta in the margin, here (beta margin - 1/2)^2: same optimum, beta^2 larger
gradients, so that clipping at 1 acts earlier.
From the code: LoRA 8 with alpha = rank, constant 1e-5 without warm-up, 10000 steps of 2 x 16 pairs.
"""

from diffalign.objectives import IPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=IPO(beta=10000.0),
    policy=LoRA(rank=8, alpha=8.0),
    resolution=512,
    steps=10000,
    batch=32,
    micro_batch=16,
    optimizer=AdamW(lr=1e-5),
)
