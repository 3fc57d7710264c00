"""Supervised fine-tuning on Stable Diffusion 1.5: on the winners of the pairs.

Paper: the baseline of Diffusion-DPO, arXiv 2311.12908, and the start of DDIM-InPO and SmPO.
beta: none.
Its learning rate and length are unstated; those of Diffusion-DPO's code are chosen (see sd15_dpo).
Data: Pick-a-Pic v2 without ties; of each pair the chosen image is learnt. On SDXL it lowers quality (MaPO's table).
"""

from diffalign.objectives import SFT
from diffalign.run import AdamW, Full, Run, Schedule

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=SFT(),
    policy=Full(),
    resolution=512,
    steps=2000,
    batch=2048,
    micro_batch=1,
    optimizer=AdamW(lr=2.048e-5),
    schedule=Schedule(warmup=500),
    caption_dropout=0.2,
)
