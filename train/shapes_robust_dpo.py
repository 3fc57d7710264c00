"""Robust DPO on the embedded world: LoRA.

Paper: Robust DPO, arXiv 2403.00409, for language models.
beta: 2000, the convention used everywhere here (half, mean). label_noise: 0.1, assumed and not in the data.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import RobustDPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sdxl",
    objective=RobustDPO(beta=2000.0, label_noise=0.1),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
