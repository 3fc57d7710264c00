"""DiffusionNFT on Stable Diffusion 3.5 medium: a mixture towards good images and away from bad ones.

Paper: DiffusionNFT, arXiv 2509.16117.
beta: 1.0, a mixture of predictions and no reward's; 0.1 for text rendering and several rewards.
From the code: groups of 24, 48 groups a step, LoRA, 3e-4, 512 pixels, penalty 1e-4 of a loss multiplied by 5 and so
2e-5 here, errors divided by their own size. From Flow-Factory's configuration: LoRA 32 with alpha 64, weight decay
1e-4, times on a grid shifted by 3 (here its continuous law; it trains on the noisier half).
`old` is the policy that drew the round, that of step 0; there a moving average, decay min(0.001 step, 0.5).
Noise within a group: unstated, independent is chosen; steps: 500 is chosen.
"""

from diffalign.objectives import NFT, Anchored
from diffalign.run import AdamW, LoRA, Run, States
from diffalign.times import Shifted

run = Run(
    model="stabilityai/stable-diffusion-3.5-medium",
    family="sd3",
    objective=Anchored(NFT(beta=1.0, normalised=True), weight=2e-5),
    policy=LoRA(rank=32, alpha=64.0),
    states=States(times=Shifted(shift=3.0), noise="independent"),
    resolution=512,
    steps=500,
    batch=48,
    micro_batch=1,
    optimizer=AdamW(lr=3e-4, weight_decay=1e-4),
)
