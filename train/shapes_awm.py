"""AWM on the embedded world: LoRA, groups of four with advantages.

Paper: AWM, arXiv 2509.25050.
beta: none. Penalty: Flow-Factory's.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import AWM, Anchored
from diffalign.run import AdamW, LoRA, Run, States

run = Run(
    model="shapes/sdxl",
    objective=Anchored(AWM(), weight=1e-4),
    policy=LoRA(rank=16, alpha=16.0),
    states=States(noise="independent"),
    resolution=64,
    steps=40,
    batch=8,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
