"""Alpha-DPO on the embedded world: LoRA.

Paper: Alpha-DPO via alpha-divergence (ICLR 2026).
beta: 2000 where the code has 4000 for SDXL, in its convention (half, mean). alpha: its 0.9999.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import AlphaDPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sdxl",
    objective=AlphaDPO(beta=2000.0),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
