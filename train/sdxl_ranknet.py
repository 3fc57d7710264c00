"""RankNet on Stable Diffusion XL: all pairs of a ranking alike.

Paper: RankNet (ICML 2005), on the implicit reward; no diffusion paper fixes its numbers.
beta: 5000, chosen: that of Diffusion-DPO for SDXL (half, mean).
Everything else is as in sdxl_rankdpo, where learning rate, warm-up and optimizer are unstated too.
"""

from diffalign.objectives import RankNet
from diffalign.run import AdamW, Full, Run, States

run = Run(
    model="stabilityai/stable-diffusion-xl-base-1.0",
    family="sdxl",
    objective=RankNet(beta=5000.0),
    policy=Full(),
    states=States(noise="independent"),
    resolution=1024,
    steps=400,
    batch=1024,
    micro_batch=1,
    optimizer=AdamW(lr=1.024e-5),
)
