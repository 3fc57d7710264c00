"""Diffusion-NPO on Stable Diffusion 1.5: a model that prefers what people reject, for the negative branch.

Paper: Diffusion-NPO, arXiv 2505.11245.
beta: 500 of the authors' script, without the half and so 1000 here.
From the code: LoRA 8 with alpha 8, constant 5e-6, 5000 steps of 64 pairs, labels swapped. There AdamW in 8 bits.
At sampling its guidance is eps_npo(negative) + s (eps(prompt) - eps_npo(negative)), s = 7.5.
Data: Pick-a-Pic v1.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=DPO(beta=1000.0),
    policy=LoRA(rank=8, alpha=8.0),
    labels="swapped",
    resolution=512,
    steps=5000,
    batch=64,
    micro_batch=8,
    optimizer=AdamW(lr=5e-6),
)
