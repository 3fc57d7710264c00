"""PSO offline without reference on SDXL-Turbo: a hinge on the likelihood, put together freely.

Paper: PSO, arXiv 2410.03190; `pso_db` of its code.
beta: 5 there, without the half and so 10 here.
Left out: 0.5 times the loser's error, which keeps the model's own images. Everything else as in sdxl_turbo_pso.
"""

from diffalign.objectives import HingeLoss, Likelihood, Pairwise
from diffalign.run import AdamW, LoRA, Run, States
from diffalign.times import Grid

run = Run(
    model="stabilityai/sdxl-turbo",
    family="sdxl",
    objective=Pairwise(Likelihood(beta=10.0), HingeLoss()),
    policy=LoRA(rank=16, alpha=16.0),
    states=States(times=Grid(points=4)),
    resolution=512,
    steps=600,
    batch=8,
    micro_batch=2,
    optimizer=AdamW(lr=2e-4),
)
