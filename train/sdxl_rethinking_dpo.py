"""Rethinking DPO on Stable Diffusion XL: a reference that moves, times that lean to noise.

Paper: Rethinking DPO, arXiv 2505.18736.
beta: "as DPO"; 5000 of Diffusion-DPO's code (half, mean) is taken.
From the paper: the policy becomes the reference every 16, 32 or 64 steps (32 is chosen) until the divergence exceeds
0.002; times by gamma = 0.9 towards noise, lambda = 1 + norm(1 / sqrt(SNR)) inside the logit. In how many categories
(10 is chosen), and how divergence and norm are normalised, is not said. The times help only with the moving reference.
Learning rate: 1e-8 scaled by the batch, as Diffusion-DPO's code (5e-8 collapsed); batch, warm-up, steps: from there.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, Full, HardCopy, Run, Schedule, States
from diffalign.times import InverseSNR, Skewed

run = Run(
    model="stabilityai/stable-diffusion-xl-base-1.0",
    family="sdxl",
    objective=DPO(beta=5000.0),
    policy=Full(),
    reference=HardCopy(every=32, until_divergence=0.002),
    states=States(times=Skewed(gamma=0.9), weighting=InverseSNR(), weighs="errors"),
    resolution=1024,
    steps=2000,
    batch=2048,
    micro_batch=1,
    optimizer=AdamW(lr=2.048e-5),
    schedule=Schedule(warmup=200),
    caption_dropout=0.2,
)
