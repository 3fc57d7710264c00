"""Diffusion-DPO on the embedded world's DiT: LoRA, pairs judged by the CLIP proxy.

Paper: Diffusion-DPO, arXiv 2311.12908; for flows VideoAlign, arXiv 2501.13918.
beta: 100, tuned (flow_grpo has 100 for SD3.5), in the convention used everywhere here (half, mean).
Times: logit-normal about 0.67, tuned: more noise than the standard law has.
Guidance: none, for a little of it is distilled into this DiT; what training changes is what is drawn.
Hardware: two CPU cores, no GPU. The values are tuned on the dev prompts.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, Evaluate, LoRA, Run, Schedule, States
from diffalign.times import LogitNormal

run = Run(
    model="shapes/sd3",
    objective=DPO(beta=100.0),
    policy=LoRA(rank=16, alpha=16.0),
    states=States(times=LogitNormal(0.7, 1.2)),
    resolution=64,
    steps=240,
    batch=16,
    optimizer=AdamW(lr=2e-3),
    schedule=Schedule("linear", warmup=5),
    log_every=5,
    save_every=20,
    evaluate=Evaluate(steps=8, guidance=1.0),
)
