"""DMPO on the embedded world: LoRA.

Paper: DMPO, arXiv 2507.07510.
beta and alpha: 2000 and 0.01, those of the code for SD1.5, in its convention (half, mean).
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import DMPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sdxl",
    objective=DMPO(beta=2000.0, alpha=0.01),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
