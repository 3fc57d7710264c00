"""PSO offline without reference on the embedded world's DiT: LoRA, a hinge on the likelihood, put together freely.

Paper: PSO, arXiv 2410.03190; `pso_db` of its code.
beta: 5, a tenth of the UNet's, at which it does not learn: see CPO. The model is no few-step one, so times are uniform.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import HingeLoss, Likelihood, Pairwise
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sd3",
    objective=Pairwise(Likelihood(beta=5.0), HingeLoss()),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
