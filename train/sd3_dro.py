"""DRO (direct reward optimisation) on Stable Diffusion 3.5 medium: linear, no reference, no beta.

Paper: DSO, arXiv 2503.22677, for TRELLIS, a flow model of 3-D shapes; the numbers are those of its code.
beta: none. The loss has no bound below: 4000 steps and no more (its DPO has 8000).
From the code: LoRA 64 with alpha 128, constant 5e-6 after 2000 steps of warm-up, times sigmoid(N(1, 1)), noise
independent within a pair, 12 pairs (6 x 2) a GPU; how many GPUs is unstated, one is assumed. Weight decay: unstated.
"""

from diffalign.objectives import DRO
from diffalign.run import AdamW, LoRA, Run, Schedule, States
from diffalign.times import LogitNormal

run = Run(
    model="stabilityai/stable-diffusion-3.5-medium",
    family="sd3",
    objective=DRO(),
    policy=LoRA(rank=64, alpha=128.0),
    states=States(times=LogitNormal(mean=1.0, std=1.0), noise="independent"),
    resolution=512,
    steps=4000,
    batch=12,
    micro_batch=6,
    optimizer=AdamW(lr=5e-6),
    schedule=Schedule(warmup=2000),
)
