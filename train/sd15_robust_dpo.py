"""Robust DPO on Stable Diffusion 1.5: labels of which a known share is wrong.

Paper: Robust DPO, arXiv 2403.00409, for language models; no diffusion paper fixes its numbers.
beta: 5000, chosen: that of Diffusion-DPO's code for SD1.5 (half, mean).
label_noise: unstated for pictures; 0.1 is chosen. Set it to the share of wrong labels that the data has.
Everything else is Diffusion-DPO's code (see sd15_dpo, also for the trap of the learning rate).
"""

from diffalign.objectives import RobustDPO
from diffalign.run import AdamW, Full, Run, Schedule

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=RobustDPO(beta=5000.0, label_noise=0.1),
    policy=Full(),
    resolution=512,
    steps=2000,
    batch=2048,
    micro_batch=1,
    optimizer=AdamW(lr=2.048e-5),
    schedule=Schedule(warmup=500),
    caption_dropout=0.2,
)
