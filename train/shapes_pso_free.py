"""PSO offline without reference on the embedded world: LoRA, a hinge on the likelihood, put together freely.

Paper: PSO, arXiv 2410.03190; `pso_db` of its code.
beta: 50, for at 500 most margins of these small errors are decided before training (see CPO). The model is no few-step
one, so times are uniform.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import HingeLoss, Likelihood, Pairwise
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="shapes/sdxl",
    objective=Pairwise(Likelihood(beta=50.0), HingeLoss()),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=40,
    batch=16,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
