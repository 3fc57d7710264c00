"""IPO on the embedded world: LoRA.

Paper: IPO, arXiv 2310.12036.
beta: 200, the convention used everywhere here (half, mean); diffusers' SD1.5 script would call it 100.
At 2000 the squares of a few wide margins drown the rest where the error is one of v.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import IPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sdxl",
    objective=IPO(beta=200.0),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
