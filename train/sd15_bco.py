"""BCO on Stable Diffusion 1.5: images that were liked or not, told apart by a classifier.

Paper: BCO, arXiv 2404.04656, for language models; no diffusion paper fixes its numbers.
beta: 10000, chosen: Diffusion-KTO's 5000 without the half.
Everything else is Diffusion-KTO's (see sd15_kto), but classes as often as the data has them.
"""

from diffalign.objectives import BCO
from diffalign.run import AdamW, Full, Run, Schedule, States

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=BCO(beta=10000.0),
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
