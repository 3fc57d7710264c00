"""Flow DPO on FLUX.1 [dev]: LoRA.

Paper: VideoAlign, arXiv 2501.13918; the numbers are those of sd3_dpo, carried over.
beta: 100, of the launchers for SD3.5; none is published for this model, and this recipe has not been run on it.
The denoiser is told guidance 3.5, its pipeline's default, by policy and reference alike. On 24 GB:
--policy.quantization nf4 --micro-batch 1 --gradient-checkpointing full.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, LoRA, Run, States
from diffalign.times import LogitNormal

run = Run(
    model="black-forest-labs/FLUX.1-dev",
    family="flux",
    objective=DPO(beta=100.0),
    policy=LoRA(rank=32, alpha=64.0),
    states=States(times=LogitNormal()),
    resolution=512,
    steps=1000,
    batch=48,
    micro_batch=2,
    optimizer=AdamW(lr=1e-5, weight_decay=1e-4),
)
