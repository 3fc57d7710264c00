"""SmPO on the embedded world: LoRA, forward noise.

Paper: SmPO-Diffusion, arXiv 2506.02698.
beta and gamma: 2000 and 10, those of the code for SD1.5, in its convention (half, mean). States are forward noise
and not inverted, so that a flow can have them too.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import SmPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sdxl",
    objective=SmPO(beta=2000.0, gamma=10.0),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
