"""CRD on Stable Diffusion 3.5 medium: implicit rewards regressed on centred ones.

Paper: CRD, arXiv 2603.14128; the numbers are those of Flow-Factory's configuration.
beta: 1 there, without the half and so 2 here.
From the code: groups of 24, 48 groups in two steps (here 24 a step), LoRA 32 with alpha 64, 3e-4, weight decay 1e-4,
512 pixels, times on a grid shifted by 3 (here its continuous law); velocity penalty 0.1, of a loss multiplied by
5 / beta and so 0.02 here. Left out: each error divided by its own size, the penalty's guidance of 4.5 and its scaling
by the reward, the moving average behind `old` (here the policy that drew the round, that of step 0).
Noise within a group: unstated, independent is chosen; steps: 500 is chosen.
"""

from diffalign.objectives import CRD, Anchored
from diffalign.run import AdamW, LoRA, Run, States
from diffalign.times import Shifted

run = Run(
    model="stabilityai/stable-diffusion-3.5-medium",
    family="sd3",
    objective=Anchored(CRD(beta=2.0), weight=0.02),
    policy=LoRA(rank=32, alpha=64.0),
    states=States(times=Shifted(shift=3.0), noise="independent"),
    resolution=512,
    steps=500,
    batch=24,
    micro_batch=1,
    optimizer=AdamW(lr=3e-4, weight_decay=1e-4),
)
