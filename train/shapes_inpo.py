"""DDIM-InPO on the embedded world: LoRA, states by inversion.

Paper: DDIM-InPO, arXiv 2503.18454.
beta: 2000, that of the code for SD1.5 (half, mean), as are the 10 steps and the noise of 0.1.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.inversion import Inversion
from diffalign.objectives import DPO
from diffalign.run import AdamW, LoRA, Run, States

run = Run(
    model="shapes/sdxl",
    objective=DPO(beta=2000.0),
    policy=LoRA(rank=16, alpha=16.0),
    states=States(inversion=Inversion(steps=10, noise=0.1)),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
