"""Diffusion-NPO on Stable Diffusion XL: a model that prefers what people reject, for the negative branch.

Paper: Diffusion-NPO, arXiv 2505.11245.
beta: 2000 of the authors' script, with the half, as here.
From the code: LoRA 8, 30 x 2 pairs a step, labels swapped; the release is that of 2000 steps. alpha (= rank) and the
constant 5e-6 are those of its SD1.5 script. At sampling s = 5.
Data: Pick-a-Pic v1.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="stabilityai/stable-diffusion-xl-base-1.0",
    family="sdxl",
    objective=DPO(beta=2000.0),
    policy=LoRA(rank=8, alpha=8.0),
    labels="swapped",
    resolution=1024,
    steps=2000,
    batch=60,
    micro_batch=2,
    optimizer=AdamW(lr=5e-6),
)
