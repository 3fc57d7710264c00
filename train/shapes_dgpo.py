"""DGPO on the embedded world: LoRA, groups of four with advantages.

Paper: DGPO, arXiv 2510.08425.
beta: 200, which is 100 in the code (no half). Its clip and penalty are the code's.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import DGPO, Anchored
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sdxl",
    objective=Anchored(DGPO(beta=200.0, clip=0.01), weight=0.02),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=8,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
