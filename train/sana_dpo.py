"""Flow DPO on Sana 1.6B: LoRA.

Paper: VideoAlign, arXiv 2501.13918; the numbers are those of sd3_dpo, carried over.
beta: 100, of the launchers for SD3.5; none is published for this model, and this recipe has not been run on it.
1024 pixels are 32 x 32 latents here, so that a step costs less than that of SD3.5 at 512.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, LoRA, Run, States
from diffalign.times import LogitNormal

run = Run(
    model="Efficient-Large-Model/Sana_1600M_1024px_diffusers",
    family="sana",
    objective=DPO(beta=100.0),
    policy=LoRA(rank=32, alpha=64.0),
    states=States(times=LogitNormal()),
    resolution=1024,
    steps=1000,
    batch=48,
    micro_batch=8,
    optimizer=AdamW(lr=1e-5, weight_decay=1e-4),
)
