"""Diffusion-DPO on the embedded world's UNet: LoRA, pairs judged by the CLIP proxy.

Hardware: two CPU cores, no GPU. The values are tuned on the dev prompts.
Paper: Diffusion-DPO, arXiv 2311.12908.
beta: 1000, tuned (2000 in the paper for SD1.5, 5000 in its code), in the convention used everywhere here (half, mean).
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, Evaluate, LoRA, Run, Schedule

run = Run(
    model="shapes/sdxl",
    objective=DPO(beta=1000.0),
    policy=LoRA(rank=16, alpha=16.0),
    resolution=64,
    steps=240,
    batch=32,
    optimizer=AdamW(lr=1e-3),
    schedule=Schedule("linear", warmup=5),
    evaluate=Evaluate(steps=10, guidance=2.0),
    log_every=5,
    save_every=40,
)
