"""MaPO on Stable Diffusion XL: no reference, full fine-tuning.

Paper: MaPO, arXiv 2406.06424.
beta: beta_mapo 0.1, snr_value 0.5 and T 1000 of the authors' code, unchanged; together they act as if beta were
k T = 500 here for small errors. The paper's beta (128 to 1024) has no known conversion.
From the code: constant 1e-5, 2000 steps of 2 x 8 pairs, one noise a pair, uniform times, no empty prompts, ties
broken at random (here kept as ties). There AdamW in 8 bits, here in 32; LoRA 8 is its other choice.
"""

from diffalign.objectives import MaPO
from diffalign.run import AdamW, Full, Run

run = Run(
    model="stabilityai/stable-diffusion-xl-base-1.0",
    family="sdxl",
    objective=MaPO(k=0.5, T=1000.0, beta_margin=0.1),
    policy=Full(),
    resolution=1024,
    steps=2000,
    batch=16,
    micro_batch=8,
    optimizer=AdamW(lr=1e-5),
)
