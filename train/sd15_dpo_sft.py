"""Diffusion-DPO with a share of likelihood on Stable Diffusion 1.5: the winner's own error is held down.

Paper: RPO, arXiv 2404.19733, for language models; no diffusion paper fixes the share.
beta: 5000 of Diffusion-DPO's code (half, mean).
sft: unstated for pictures; 125 is chosen, a tenth of the slope beta / 4 = 1250 that DPO starts with.
Everything else is Diffusion-DPO's code (see sd15_dpo, also for the trap of the learning rate).
"""

from diffalign.objectives import DPO, Mixed
from diffalign.run import AdamW, Full, Run, Schedule

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=Mixed(DPO(beta=5000.0), sft=125.0),
    policy=Full(),
    resolution=512,
    steps=2000,
    batch=2048,
    micro_batch=1,
    optimizer=AdamW(lr=2.048e-5),
    schedule=Schedule(warmup=500),
    caption_dropout=0.2,
)
