"""DiffusionNFT on the embedded world: LoRA, groups of four with advantages.

Paper: DiffusionNFT, arXiv 2509.16117.
beta: 1, a mixture of predictions and no reward's. Penalty: 1e-4 / 5, the code's.
Every other value is chosen for the embedded world and shared by all methods there; scripts/learns.py measures it.
Hardware: two CPU cores, less than a minute.
"""

from diffalign.objectives import NFT, Anchored
from diffalign.run import AdamW, LoRA, Run, States

run = Run(
    model="shapes/sdxl",
    objective=Anchored(NFT(beta=1.0, normalised=True), weight=2e-5),
    policy=LoRA(rank=16, alpha=16.0),
    states=States(noise="independent"),
    resolution=64,
    steps=40,
    batch=8,
    optimizer=AdamW(lr=1e-3),
    log_every=5,
    save_every=40,
)
