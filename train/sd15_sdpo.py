"""Diffusion-SDPO on Stable Diffusion 1.5: Diffusion-DPO whose loser may not undo the winner.

Paper: Diffusion-SDPO, arXiv 2511.03317.
beta: 5000 there and here (half, mean). mu: 0.9 (0.9 with DMPO too, 0.2 with DSPO).
Learning rate: 1e-8 there, scaled by 8 x 32 pairs a GPU; how many GPUs is unstated, 8 are assumed, which gives 2048
pairs and 2.048e-5, those of Diffusion-DPO.
From the code: constant after 500 steps of warm-up, 2000 steps, bf16. Its lambda is a micro-batch's (parity "micro"),
here the optimizer batch's. Empty prompts as in Diffusion-DPO.
"""

from diffalign.objectives import DPO, Safeguarded
from diffalign.run import AdamW, Full, Run, Schedule

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=Safeguarded(DPO(beta=5000.0), mu=0.9),
    policy=Full(),
    resolution=512,
    steps=2000,
    batch=2048,
    micro_batch=8,
    optimizer=AdamW(lr=2.048e-5),
    schedule=Schedule(warmup=500),
    caption_dropout=0.2,
)
