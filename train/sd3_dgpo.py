"""DGPO on Stable Diffusion 3.5 medium: groups with advantages, a group's Bradley-Terry loss.

Paper: DGPO, arXiv 2510.08425.
beta: 100 of the authors' configuration, without the half and so 200 here.
From the code: clip 0.01, velocity penalty 0.02, groups of 16, 8 groups a step (4 GPUs), one noise a group, LoRA, 3e-4
and weight decay 1e-4 (flow_grpo's), 512 pixels, times on a grid shifted by 3 (here its continuous law). LoRA 32 with
alpha 64 is Flow-Factory's. Steps are unstated (stopped by hand); 500 is chosen.
Online there: a round is `sample`, `score`, `pair` by advantages, `train`; `old` is the policy that drew the round,
the one of step 0. Its switch to an EMA reference (beta 2000) is left out.
"""

from diffalign.objectives import DGPO, Anchored
from diffalign.run import AdamW, LoRA, Run, States
from diffalign.times import Shifted

run = Run(
    model="stabilityai/stable-diffusion-3.5-medium",
    family="sd3",
    objective=Anchored(DGPO(beta=200.0, clip=0.01), weight=0.02),
    policy=LoRA(rank=32, alpha=64.0),
    states=States(times=Shifted(shift=3.0)),
    resolution=512,
    steps=500,
    batch=8,
    micro_batch=1,
    optimizer=AdamW(lr=3e-4, weight_decay=1e-4),
)
