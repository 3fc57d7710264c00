"""MaPO on the embedded world: LoRA, no reference.

Paper: MaPO, arXiv 2406.06424.
beta: the code's own numbers, which act as if beta were 500 here.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import MaPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sdxl",
    objective=MaPO(k=0.5, T=1000.0, beta_margin=0.1),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
