"""CPO on Stable Diffusion XL: a margin without reference, held by the winner's likelihood.

Paper: CPO, arXiv 2401.08417, for language models; no diffusion paper fixes its numbers.
beta: 500, chosen: where MaPO's margin sits. sft: 1, the paper's.
Everything else is MaPO's code (see sdxl_mapo).
"""

from diffalign.objectives import CPO
from diffalign.run import AdamW, Full, Run

run = Run(
    model="stabilityai/stable-diffusion-xl-base-1.0",
    family="sdxl",
    objective=CPO(beta=500.0, sft=1.0),
    policy=Full(),
    resolution=1024,
    steps=2000,
    batch=16,
    micro_batch=8,
    optimizer=AdamW(lr=1e-5),
)
