"""MADPO on Stable Diffusion 1.5: close calls of a scorer weigh more.

Paper: Margin-adaptive DPO, for language models; no diffusion paper fixes its numbers.
beta: 5000, chosen: that of Diffusion-DPO's code for SD1.5; MADPO's own 0.1 acts on log-ratios of words.
From its notebook: c_max 2, c_min 1/2, steepness 1, tau = log 999. Score gaps are read in the units of a reward model
trained as Bradley-Terry (a gap of log 999 is a P of 0.999): scale the scores of `pair` so.
Everything else is Diffusion-DPO's code (see sd15_dpo, also for the trap of the learning rate).
Data: pairs with score gaps.
"""

from diffalign.objectives import MADPO
from diffalign.run import AdamW, Full, Run, Schedule

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=MADPO(beta=5000.0),
    policy=Full(),
    resolution=512,
    steps=2000,
    batch=2048,
    micro_batch=1,
    optimizer=AdamW(lr=2.048e-5),
    schedule=Schedule(warmup=500),
    caption_dropout=0.2,
)
