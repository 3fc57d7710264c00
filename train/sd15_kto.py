"""Diffusion-KTO on Stable Diffusion 1.5: images that were liked or not, unpaired.

Paper: Diffusion-KTO, arXiv 2404.04465.
beta: 5000 in the paper, without the half there and so 10000 here; the code's example leaves its default 1000 (2000).
From the paper: Adam, 1e-7, warm-up 1000, 10000 steps of 4 GPUs x 2 images, lambda 1 and 1. From the code: a time and
a noise for each image, empty prompts 0.2, baseline over GPUs' micro-batches (parity "micro"; here the batch's).
It draws liked images with probability 0.8; here `weights` do that for Pick-a-Pic, where 25.6 % are liked (237,530 of
928,068): 0.8 / 0.256 and 0.2 / 0.744. Weight decay is unstated; Adam has none.
Data: an image preferred at least once is desirable, all others are not.
"""

from diffalign.objectives import KTO
from diffalign.run import AdamW, Full, Run, Schedule, States

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=KTO(beta=10000.0, weights=(3.126, 0.269)),
    policy=Full(),
    states=States(noise="independent"),
    resolution=512,
    steps=10000,
    batch=8,
    micro_batch=2,
    optimizer=AdamW(lr=1e-7, weight_decay=0.0),
    schedule=Schedule(warmup=1000),
    caption_dropout=0.2,
)
