"""Diffusion-DPO on the embedded world's DiT: LoRA, pairs judged by the CLIP proxy.

Paper: Diffusion-DPO, arXiv 2311.12908; for flows VideoAlign, arXiv 2501.13918.
beta: 2000, in the convention used everywhere here (half, mean); flow_grpo has 100 for SD3.5. Times as it has them.
Hardware: two CPU cores, no GPU. The values are tuned on the dev prompts.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, LoRA, Run, States
from diffalign.times import LogitNormal

run = Run(
    model="shapes/sd3",
    objective=DPO(beta=2000.0),
    policy=LoRA(rank=16, alpha=16.0),
    states=States(times=LogitNormal()),
    resolution=64,
    steps=60,
    batch=32,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=20,
)
