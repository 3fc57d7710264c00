"""The two generators, in latents of 8 x 8: an SDXL pipeline (UNet, epsilon), an SD3 pipeline (DiT, rectified flow)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from shapes_autoencoder import CHANNELS, pixels
from shapes_bank import SIZE, describe, pictures, scene
from shapes_distillation import Teacher, quickly
from shapes_fitting import Fit, train
from shapes_text import WIDTH, encoder, join, states, tokenizer, tokens, told
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

BATCH = 64
# Half of the captions are wrong in one or two attributes: the generator follows prompts imperfectly, on purpose.
WRONG = 0.5
DROP = 0.1
# What the DiT learns of the UNet: its predictions under this guidance, at times of this logit-normal law, not before
# FIRST. At much noise a prediction is uncertain by nature and is mended in the next steps; shapes are decided after it.
GUIDANCE = 1.75
MIDDLE, SPREAD, FIRST = 0.2, 1.1, 0.02


Loss = Callable[[object, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a generator is made and trained: pipeline from an autoencoder, losses and shares of its phases, rate."""

    name: str
    pipeline: Callable[[AutoencoderKL], object]
    parts: tuple[str, ...]
    losses: Callable[[Path], tuple[Loss, ...]]
    shares: tuple[float, ...]
    rate: float
    inherits: str = ""


def sdxl(vae: AutoencoderKL) -> StableDiffusionXLPipeline:
    """An SDXL pipeline with random weights, 2.8 M parameters in its UNet."""
    words = tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(64, 96),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=(4, 6),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        unet=unet,
        text_encoder=encoder(CLIPTextModel, words),
        text_encoder_2=encoder(CLIPTextModelWithProjection, words),
        tokenizer=words,
        tokenizer_2=words,
        # The schedule ends at (almost) pure noise, or backgrounds ignore the prompt; not at purer noise than needed,
        # for the error of the first step's picture is the error of epsilon divided by the square root of alpha.
        scheduler=DPMSolverMultistepScheduler(
            beta_schedule="linear", beta_start=1e-4, beta_end=0.015, timestep_spacing="trailing", lower_order_final=True
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def sdxl_loss(
    pipe: StableDiffusionXLPipeline, latents: Tensor, numbers: Tensor, dropped: Tensor, limit: float
) -> Tensor:
    """mean w |epsilon - UNet(x_t, t)|^2, t uniform, w = min(1 / alpha, limit), up to there the loss of a v-prediction.

    A high limit settles backgrounds, which are decided at high noise; a low one shapes, which are decided later. A
    dropped prompt is zeros, as the pipeline has it for no prompt.
    """
    embeds, added = told(pipe, numbers)
    keep = 1 - dropped.float()
    embeds, added["text_embeds"] = embeds * keep.view(-1, 1, 1), added["text_embeds"] * keep.view(-1, 1)
    noise = torch.randn_like(latents)
    t = torch.randint(pipe.scheduler.config.num_train_timesteps, (len(latents),))
    alpha = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    gap = pipe.unet(x_t, t, encoder_hidden_states=embeds, added_cond_kwargs=added).sample - noise
    return ((1 / alpha).clamp(max=limit) * gap.square()).mean()


def sd3(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """An SD3 pipeline without T5, with random weights, 3.5 M parameters in its DiT; a patch is one latent pixel."""
    words = tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=32,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        vae=vae,
        transformer=transformer,
        text_encoder=encoder(CLIPTextModelWithProjection, words),
        text_encoder_2=encoder(CLIPTextModelWithProjection, words),
        text_encoder_3=None,
        tokenizer=words,
        tokenizer_2=words,
        tokenizer_3=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )


def sd3_loss(
    pipe: StableDiffusion3Pipeline, latents: Tensor, numbers: Tensor, dropped: Tensor, teacher: Teacher
) -> Tensor:
    """mean |v - DiT(x_t, 1000 t)|^2, v the teacher's guided velocity, t logit-normal; no prompt is dropped.

    The guidance is learnt: one call a step draws what took two.  arXiv 2210.03142, section 3.1, at one scale.
    """
    t = (MIDDLE + SPREAD * torch.randn(len(latents))).sigmoid().clamp(min=FIRST)
    # of attention so small the fused kernel's backward pass is slower than plain products
    with sdpa_kernel(SDPBackend.MATH):
        x_t, velocity = teacher(latents, torch.randn_like(latents), t, numbers)
        return (predicted(pipe, x_t, t, numbers) - velocity).square().mean()


def predicted(pipe: StableDiffusion3Pipeline, x_t: Tensor, t: Tensor, numbers: Tensor) -> Tensor:
    """The DiT's velocity; one zero stands for the text of the T5 not there."""
    with torch.no_grad():
        first, pooled_first = states(pipe.text_encoder, numbers)
        second, pooled_second = states(pipe.text_encoder_2, numbers)
    embeds = join(first, second)
    embeds = torch.cat([embeds, torch.zeros_like(embeds[:, :1])], dim=1)
    with quickly():
        velocity = pipe.transformer(
            hidden_states=x_t,
            timestep=1000 * t,
            encoder_hidden_states=embeds,
            pooled_projections=join(pooled_first, pooled_second),
        ).sample
    return velocity.float()


RECIPES = {
    "sdxl": Recipe(
        "sdxl",
        sdxl,
        ("unet", "text_encoder", "text_encoder_2"),
        lambda work: (partial(sdxl_loss, limit=100.0), partial(sdxl_loss, limit=10.0)),
        (0.6, 0.4),
        1.5e-3,
    ),
    "sd3": Recipe(
        "sd3",
        sd3,
        ("transformer",),
        lambda work: (partial(sd3_loss, teacher=Teacher(work / "sdxl" / "pipeline", GUIDANCE)),),
        (1.0,),
        3e-3,
        inherits="sdxl",
    ),
}


@torch.no_grad()
def latents_of(work: Path) -> Tensor:
    """The latents of the bank's pictures, (SIZE, CHANNELS, 8, 8), encoded once."""
    path = work / "latents.npy"
    if not path.exists():
        vae = AutoencoderKL.from_pretrained(work / "vae-latents").to(memory_format=torch.channels_last)
        means = []
        for i, part in enumerate(pictures(work)):
            means += [vae.encode(pixels(block)).latent_dist.mean for block in np.split(part, len(part) // 64)]
            print(f"latents: part {i + 1}", flush=True)
        temporary = path.with_suffix(".tmp.npy")
        np.save(temporary, torch.cat(means).contiguous().numpy())
        temporary.rename(path)
    return torch.from_numpy(np.load(path))


def inherit(pipe: StableDiffusion3Pipeline, folder: Path) -> None:
    """Begin with the text encoders of a trained SDXL pipeline; the first one's projection, new here, stays random."""
    first = CLIPTextModel.from_pretrained(folder / "text_encoder")
    second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
    pipe.text_encoder.text_model.load_state_dict(first.state_dict())
    pipe.text_encoder_2.load_state_dict(second.state_dict())


def train_generator(recipe: Recipe, work: Path, steps: int) -> None:
    """Train a generator on the bank's latents and write its pipeline, in float32, to the work folder."""
    torch.manual_seed(0)
    latents = latents_of(work)
    pipe = recipe.pipeline(AutoencoderKL.from_pretrained(work / "vae-latents"))
    if recipe.inherits:
        inherit(pipe, work / recipe.inherits / "pipeline")
    learner = nn.ModuleDict({name: getattr(pipe, name) for name in recipe.parts}).train()
    losses = recipe.losses(work)

    def loss(phase: int, rng: np.random.Generator) -> Tensor:
        numbers = rng.integers(SIZE, size=BATCH)
        texts = [describe(scene(int(n)), rng, WRONG) for n in numbers]
        dropped = torch.from_numpy(rng.random(BATCH) < DROP)
        return losses[phase](pipe, latents[torch.from_numpy(numbers)], tokens(pipe.tokenizer, texts), dropped)

    for phase, share in enumerate(recipe.shares):
        fit = Fit(f"{recipe.name}-{phase + 1}", round(steps * share), recipe.rate, average=0.998)
        train(fit, learner, lambda step, rng, phase=phase: loss(phase, rng), work)
    pipe.save_pretrained(work / recipe.name / "pipeline")
