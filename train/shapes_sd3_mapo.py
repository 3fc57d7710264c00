"""MaPO on the embedded world's DiT: LoRA, no reference.

Paper: MaPO, arXiv 2406.06424.
beta: k T = 50, a tenth of the code's, for errors of a velocity differ more. beta_margin: 5 (0.1 in the code): this DiT
imitates guided predictions, so that the supervised part leads away from them, and at 1 outweighs the margin.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import MaPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sd3",
    objective=MaPO(k=0.5, T=100.0, beta_margin=5.0),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
