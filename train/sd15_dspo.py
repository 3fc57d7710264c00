"""DSPO on Stable Diffusion 1.5: score matching to the preferred image.

Paper: DSPO (ICLR 2025), after the SD1.5 branch of the authors' code.
beta: 0.001 of the launcher, used twice there and here: in the margin (half, mean) and as the size of the correction.
At that value it is supervised fine-tuning on winners to within 0.1 %; 0.01 and 0.05 are the other published ones.
From the code: 1e-8 scaled by 16 x 128 = 2048 pairs to 2.048e-5, warm-up 500, at most 2000 steps; the best of its
checkpoints are those of 500, 1000 and 1500. Empty prompts as in Diffusion-DPO.
"""

from diffalign.objectives import DSPO
from diffalign.run import AdamW, Full, Run, Schedule

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=DSPO(beta=0.001),
    policy=Full(),
    resolution=512,
    steps=1500,
    batch=2048,
    micro_batch=1,
    optimizer=AdamW(lr=2.048e-5),
    schedule=Schedule(warmup=500),
    caption_dropout=0.2,
)
