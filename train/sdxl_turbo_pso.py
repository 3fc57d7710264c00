"""PSO offline on SDXL-Turbo: few-step models keep their few steps.

Paper: PSO, arXiv 2410.03190.
beta: 5 of the authors' code, without the half and so 10 here.
From the code: times on the distilled grid, LoRA 16, 2e-4, 600 steps; the error of x0 with EDM's weight, which is that
of the noise. alpha is unstated (= rank is chosen), as is the batch (8 is chosen, that of the online launcher).
Data: pairs of a target image and one that the few-step model drew itself (20 a subject there).
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, LoRA, Run, States
from diffalign.times import Grid

run = Run(
    model="stabilityai/sdxl-turbo",
    family="sdxl",
    objective=DPO(beta=10.0),
    policy=LoRA(rank=16, alpha=16.0),
    states=States(times=Grid(points=4)),
    resolution=512,
    steps=600,
    batch=8,
    micro_batch=2,
    optimizer=AdamW(lr=2e-4),
)
