"""CPO on the embedded world's DiT: LoRA, no reference.

Paper: CPO, arXiv 2401.08417, for language models.
beta: 5, a tenth of the UNet's, at which it does not learn: errors of a velocity differ more, and most margins are
decided before training. sft: 1, the paper's.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import CPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sd3",
    objective=CPO(beta=5.0, sft=1.0),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
