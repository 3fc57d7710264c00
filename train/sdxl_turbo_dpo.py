"""Diffusion-DPO on SDXL-Turbo: on the four times that the model was distilled on.

Paper: Diffusion-DPO, arXiv 2311.12908; the branch of its code for Turbo.
beta: 5000, in the convention used here (half, mean).
From the code: times 249, 499, 749, 999, the schedule rescaled to zero terminal SNR, no empty prompts; everything
else as for SDXL (see sdxl_dpo for the trap of the learning rate). 512 pixels are the model's own.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, Full, Run, Schedule, States
from diffalign.times import Grid

run = Run(
    model="stabilityai/sdxl-turbo",
    family="sdxl",
    objective=DPO(beta=5000.0),
    policy=Full(),
    states=States(times=Grid(points=4), zero_terminal_snr=True),
    resolution=512,
    steps=2000,
    batch=2048,
    micro_batch=1,
    optimizer=AdamW(lr=2.048e-5),
    schedule=Schedule(warmup=200),
)
