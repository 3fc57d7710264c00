"""Flow DPO on Qwen-Image: LoRA.

Paper: VideoAlign, arXiv 2501.13918; the numbers are those of sd3_dpo, carried over.
beta: 100, also that of verl-omni's launcher for this model (there pairs are drawn as it learns); the other numbers are
those for SD3.5, and this recipe has not been run on it. On small cards: --policy.quantization nf4
--gradient-checkpointing full.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, LoRA, Run, States
from diffalign.times import LogitNormal

run = Run(
    model="Qwen/Qwen-Image",
    family="qwen-image",
    objective=DPO(beta=100.0),
    policy=LoRA(rank=32, alpha=64.0),
    states=States(times=LogitNormal()),
    resolution=512,
    steps=1000,
    batch=48,
    micro_batch=1,
    optimizer=AdamW(lr=1e-5, weight_decay=1e-4),
)
