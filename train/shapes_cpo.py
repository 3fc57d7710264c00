"""CPO on the embedded world: LoRA, no reference.

Paper: CPO, arXiv 2401.08417, for language models.
beta: 50, for at 500 most margins of these small errors are decided before training and little is learnt. sft: 1, the
paper's.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import CPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sdxl",
    objective=CPO(beta=50.0, sft=1.0),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
