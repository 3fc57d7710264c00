"""SimPO on Stable Diffusion XL: a margin to exceed, no reference.

Paper: SimPO, arXiv 2405.14734, for language models; no diffusion paper fixes its numbers.
beta: 500, chosen: where MaPO's margin sits. gamma: 0.5, chosen: the gap of errors that it asks for, 2 gamma / beta =
0.002, is one that pairs have; the paper's gamma / beta = 1/2 would mean a gap of 1.
Everything else is MaPO's code (see sdxl_mapo).
"""

from diffalign.objectives import SimPO
from diffalign.run import AdamW, Full, Run

run = Run(
    model="stabilityai/stable-diffusion-xl-base-1.0",
    family="sdxl",
    objective=SimPO(beta=500.0, gamma=0.5),
    policy=Full(),
    resolution=1024,
    steps=2000,
    batch=16,
    micro_batch=8,
    optimizer=AdamW(lr=1e-5),
)
