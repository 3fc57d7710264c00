"""Diffusion-SDPO on the embedded world: LoRA.

Paper: Diffusion-SDPO, arXiv 2511.03317.
beta: 2000, the convention used everywhere here (half, mean). mu: 0.9, the code's for SD1.5.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import DPO, Safeguarded
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sdxl",
    objective=Safeguarded(DPO(beta=2000.0), mu=0.9),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
