"""Curriculum-DPO on the embedded world: LoRA, the widest score gaps first.

Paper: Curriculum-DPO, arXiv 2405.13637.
beta: 2000, that of the code (half, mean). Stages: 4 of 10 steps where the code has 6 of 500.
Data: pairs with score gaps.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, Curriculum, LoRA, Run

run = Run(
    model="shapes/sdxl",
    objective=DPO(beta=2000.0),
    policy=LoRA(rank=16, alpha=16.0),
    curriculum=Curriculum(stages=4, every=10),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
