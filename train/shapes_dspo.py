"""DSPO on the embedded world: LoRA.

Paper: DSPO (ICLR 2025).
beta: 0.001, that of the code (half, mean); there it is supervised fine-tuning to within 0.1 %.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import DSPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sdxl",
    objective=DSPO(beta=0.001),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
