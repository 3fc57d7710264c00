"""Curriculum-DPO on Stable Diffusion 2.1: the widest score gaps first.

Paper: Curriculum-DPO, arXiv 2405.13637.
beta: 2000, written into the code where its argument (default 200) is ignored; half and mean as here.
From the code: LoRA 8, 1e-4, 8 pairs a step, 6 stages of 500 steps, each adding the next easiest sixth, empty prompts
0.25; pairs whose gap exceeds 0.02 (0.2 for aesthetics), for Pick-a-Pic the widest 150,000. alpha is unstated (= rank
is chosen). Its model is the base one of 512 pixels.
Data: pairs with score gaps.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, Curriculum, LoRA, Run

run = Run(
    model="stabilityai/stable-diffusion-2-1-base",
    family="sd",
    objective=DPO(beta=2000.0),
    policy=LoRA(rank=8, alpha=8.0),
    curriculum=Curriculum(stages=6, every=500),
    resolution=512,
    steps=3000,
    batch=8,
    optimizer=AdamW(lr=1e-4),
    caption_dropout=0.25,
)
