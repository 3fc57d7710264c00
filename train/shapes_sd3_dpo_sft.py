"""Diffusion-DPO with a share of likelihood on the embedded world's DiT: LoRA, pairs judged by the CLIP proxy.

Paper: RPO, arXiv 2404.19733, for language models; for flows VideoAlign, arXiv 2501.13918.
beta: 100, tuned (flow_grpo has 100 for SD3.5), in the convention used everywhere here (half, mean). sft: tuned; DPO
starts with a slope of beta / 4.
Times: logit-normal about 0.67, tuned: more noise than the standard law has.
Targets: the text's side of every block alone. What pairs teach of attributes is what words mean; on the picture's side
the same pairs also blur what was crisp.
Hardware: two CPU cores, no GPU. The values are tuned on the dev prompts.
"""

from diffalign.objectives import DPO, Mixed
from diffalign.run import AdamW, Evaluate, LoRA, Run, Schedule, States
from diffalign.times import LogitNormal

run = Run(
    model="shapes/sd3",
    objective=Mixed(DPO(beta=100.0), sft=30.0),
    policy=LoRA(
        rank=16,
        alpha=16.0,
        targets=(
            *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
            *("ff_context.net.0.proj", "ff_context.net.2", "context_embedder"),
        ),
    ),
    states=States(times=LogitNormal(0.7, 1.2)),
    resolution=64,
    steps=60,
    batch=32,
    optimizer=AdamW(lr=4e-3),
    schedule=Schedule("linear", warmup=5),
    log_every=5,
    save_every=20,
    evaluate=Evaluate(steps=8, guidance=3.5),
)
