"""AWM on Stable Diffusion 3.5 medium: the pretraining loss, weighed by advantages.

Paper: AWM, arXiv 2509.25050; the numbers are those of Flow-Factory's configuration that reproduces it.
beta: none.
From the code: velocity penalty 1e-4, groups of 16, 48 groups a step, LoRA 32 with alpha 64, 3e-4, weight decay 1e-4,
512 pixels, times on a grid shifted by 3 (here its continuous law), advantages clipped at 1 (as the data comes). Its
one step a round is on-policy, where clipping does nothing. Its huber weighting (power 0.25) and its second penalty to
an average of the policy are left out. Noise within a group: unstated, independent is chosen; steps: 500 is chosen.
"""

from diffalign.objectives import AWM, Anchored
from diffalign.run import AdamW, LoRA, Run, States
from diffalign.times import Shifted

run = Run(
    model="stabilityai/stable-diffusion-3.5-medium",
    family="sd3",
    objective=Anchored(AWM(), weight=1e-4),
    policy=LoRA(rank=32, alpha=64.0),
    states=States(times=Shifted(shift=3.0), noise="independent"),
    resolution=512,
    steps=500,
    batch=48,
    micro_batch=1,
    optimizer=AdamW(lr=3e-4, weight_decay=1e-4),
)
