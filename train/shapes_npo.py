"""Diffusion-NPO on the embedded world: LoRA, labels swapped.

Paper: Diffusion-NPO, arXiv 2505.11245.
beta: 2000, that of the script for SDXL (half, mean).
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sdxl",
    objective=DPO(beta=2000.0),
    policy=LoRA(rank=16, alpha=16.0),
    labels="swapped",
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
