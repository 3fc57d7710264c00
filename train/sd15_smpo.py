"""SmPO on Stable Diffusion 1.5: states by ReNoise inversion, labels as soft as a scorer's.

Paper: SmPO-Diffusion, arXiv 2506.02698.
beta: 2000 there and here (half, mean). gamma: 10.
Learning rate: 1e-8 there, scaled by 1024 pairs to 1.024e-5.
From the code: 5 steps of inversion by the policy with one ReNoise look each, 200 steps, warm-up 100, empty prompts
0.2; it starts from weights fine-tuned on winners (sd15_sft), policy and reference alike: give those as --model.
Its grid overshoots the time (Inversion(legacy=True)); here states are exact. One pair a GPU, P of the first only.
Data: pairs with P from PickScore, e^n / (e^n + e^m) of cosines normalised to [0.1154, 0.2820].
"""

from diffalign.inversion import Inversion
from diffalign.objectives import SmPO
from diffalign.run import AdamW, Full, Run, Schedule, States

run = Run(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    family="sd",
    objective=SmPO(beta=2000.0, gamma=10.0),
    policy=Full(),
    states=States(inversion=Inversion(steps=5, renoise=1)),
    resolution=512,
    steps=200,
    batch=1024,
    micro_batch=1,
    optimizer=AdamW(lr=1.024e-5),
    schedule=Schedule(warmup=100),
    caption_dropout=0.2,
)
