"""MADPO on the embedded world: LoRA.

Paper: Margin-adaptive DPO, for language models.
beta: 2000, the convention used everywhere here (half, mean). The rest of the objective is the notebook's.
Data: pairs with score gaps.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import MADPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sdxl",
    objective=MADPO(beta=2000.0),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
