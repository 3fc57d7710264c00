"""Plackett-Luce on the embedded world: LoRA, lists of four.

Paper: DPO for rankings, arXiv 2305.18290, appendix A.3, for language models.
beta: 2000, the convention used everywhere here (half, mean).
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import PlackettLuce
from diffalign.run import AdamW, LoRA, Run, States

run = Run(
    model="shapes/sdxl",
    objective=PlackettLuce(beta=2000.0),
    policy=LoRA(rank=16, alpha=16.0),
    states=States(noise="independent"),
    resolution=64,
    steps=40,
    batch=8,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
