"""Rethinking DPO on the embedded world: LoRA, a reference that moves, times that lean to noise.

Paper: Rethinking DPO, arXiv 2505.18736.
beta: 2000, the convention used everywhere here (half, mean). The reference follows every 16 steps.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, HardCopy, LoRA, Run, States
from diffalign.times import InverseSNR, Skewed

run = Run(
    model="shapes/sdxl",
    objective=DPO(beta=2000.0),
    policy=LoRA(rank=16, alpha=16.0),
    reference=HardCopy(every=16),
    states=States(times=Skewed(gamma=0.9), weighting=InverseSNR(), weighs="errors"),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
