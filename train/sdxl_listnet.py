"""ListNet on Stable Diffusion XL: the softmax of the scores is the target.

Paper: ListNet (ICML 2007), on the implicit reward; no diffusion paper fixes its numbers.
beta: 5000, chosen: that of Diffusion-DPO for SDXL (half, mean).
temperature: 0.5 of ADPO, for normalised advantages; scores that are shares of duels won span less, so it is soft.
Everything else is as in sdxl_rankdpo, where learning rate, warm-up and optimizer are unstated too.
"""

from diffalign.objectives import ListNet
from diffalign.run import AdamW, Full, Run, States

run = Run(
    model="stabilityai/stable-diffusion-xl-base-1.0",
    family="sdxl",
    objective=ListNet(beta=5000.0, temperature=0.5),
    policy=Full(),
    states=States(noise="independent"),
    resolution=1024,
    steps=400,
    batch=1024,
    micro_batch=1,
    optimizer=AdamW(lr=1.024e-5),
)
