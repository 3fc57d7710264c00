"""Diffusion-KTO on the embedded world: LoRA, unpaired.

Paper: Diffusion-KTO, arXiv 2404.04465.
beta: 2000, which is 1000 in the code (no half), its default.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import KTO
from diffalign.run import AdamW, LoRA, Run, States

run = Run(
    model="shapes/sdxl",
    objective=KTO(beta=2000.0),
    policy=LoRA(rank=16, alpha=16.0),
    states=States(noise="independent"),
    resolution=64,
    steps=40,
    batch=32,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
