"""Diffusion-DPO on PixArt-Sigma: LoRA.

Paper: Diffusion-DPO, arXiv 2311.12908; the numbers are those of sdxl_lora_dpo, carried over.
beta: 5000, that for SDXL; none is published for this model, and this recipe has not been run on it.
Errors are those of epsilon; the variance channels, which the transformer has too, are not trained.
"""

from diffalign.objectives import DPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    family="pixart",
    objective=DPO(beta=5000.0),
    policy=LoRA(rank=8, alpha=8.0),
    resolution=1024,
    steps=2000,
    batch=16,
    micro_batch=8,
    optimizer=AdamW(lr=1e-5),
)
