"""RankDPO on Stable Diffusion XL: lists of four images, weighed by gain and discount.

Paper: RankDPO, arXiv 2410.18013.
beta: unstated, and without the half; 5000 here is chosen, that of Diffusion-DPO for SDXL.
Learning rate: unstated; 1.024e-5 is chosen, 1e-8 scaled by the batch as in Diffusion-DPO's code.
From the paper: 400 steps of 1024 lists, noise of each image its own, one uniform time a list. Empty prompts,
warm-up and optimizer are unstated. Hardware: 16 hours on 8 A100 (paper).
Data: Syn-Pic, four models' images of 58,000 prompts; scores are shares of duels won before five scorers.
"""

from diffalign.objectives import RankDPO
from diffalign.run import AdamW, Full, Run, States

run = Run(
    model="stabilityai/stable-diffusion-xl-base-1.0",
    family="sdxl",
    objective=RankDPO(beta=5000.0),
    policy=Full(),
    states=States(noise="independent"),
    resolution=1024,
    steps=400,
    batch=1024,
    micro_batch=1,
    optimizer=AdamW(lr=1.024e-5),
)
