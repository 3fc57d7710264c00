"""Flow DPO on Stable Diffusion 3.5 medium: LoRA.

Paper: VideoAlign, arXiv 2501.13918; the numbers are those of flow_grpo and Flow-Factory.
beta: 100 of both launchers, in the convention used here (half, mean); a constant one, which did better than
the strict beta (1 - t)^2 (that is states.weighting AsEpsilon with weighs "errors").
Learning rate: 1e-5 of Flow-Factory, which says that flow_grpo's 3e-4 makes it collapse.
From the code: LoRA 32 with alpha 64, weight decay 1e-4, logit-normal times, one noise a pair, 48 groups a step,
512 pixels. Steps are unstated (pairs are drawn as it learns); 1000 is chosen.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, LoRA, Run, States
from diffalign.times import LogitNormal

run = Run(
    model="stabilityai/stable-diffusion-3.5-medium",
    family="sd3",
    objective=DPO(beta=100.0),
    policy=LoRA(rank=32, alpha=64.0),
    states=States(times=LogitNormal()),
    resolution=512,
    steps=1000,
    batch=48,
    micro_batch=8,
    optimizer=AdamW(lr=1e-5, weight_decay=1e-4),
)
