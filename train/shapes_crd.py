"""CRD on the embedded world: LoRA, groups of four with advantages.

Paper: CRD, arXiv 2603.14128.
beta: 2, which is 1 in Flow-Factory (no half). Penalty: 0.1 / 5 there.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import CRD, Anchored
from diffalign.run import AdamW, LoRA, Run, States

run = Run(
    model="shapes/sdxl",
    objective=Anchored(CRD(beta=2.0), weight=0.02),
    policy=LoRA(rank=16, alpha=16.0),
    states=States(noise="independent"),
    resolution=64,
    steps=40,
    batch=8,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
