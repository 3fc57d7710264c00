"""Single files of Stable Diffusion 1.x, 2.x and XL, as ComfyUI and A1111 read them: their names, and writing one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffalign import entries, weights
from diffalign.records import InputError

# tensors without content by which ComfyUI and A1111 tell an XL file apart, and what they say of its scheduler
MARKS = {"v_pred": ("prediction_type", "v_prediction"), "ztsnr": ("rescale_betas_zero_snr", True)}


def check(source: weights.Source, unet: Any, example: str) -> None:
    """Raise InputError unless a file holds the UNet of the folder of `source`, which is likely that of `example`."""
    found = weights.header(source.file)
    _check_unet(source, found, unet, example)
    _check_marks(source, found)


def _check_marks(source: weights.Source, found: Mapping[str, list[int]]) -> None:
    """Raise InputError where a file is marked as of another prediction or schedule than the folder's."""
    place = source.folder / "scheduler" / "scheduler_config.json"
    told = entries.whole(place) if place.is_file() else {}
    for mark, (field, value) in MARKS.items():
        if mark in found and told.get(field) != value:
            raise InputError(
                f"{source.file}: is marked {mark!r}, but {place} has {field} {json.dumps(told.get(field))}; expected a "
                f"copy of that folder in which it is {json.dumps(value)}"
            )


def _check_unet(source: weights.Source, found: Mapping[str, list[int]], unet: Any, example: str) -> None:
    """Raise InputError naming the first tensor of the UNet that the file lacks, or has in another shape."""
    names = unet_names(unet)
    for name, value in unet.state_dict().items():
        theirs, wanted = f"model.diffusion_model.{names[name]}", list(value.shape)
        if found.get(theirs) != wanted:
            has = f"has it as {found[theirs]}" if theirs in found else "lacks it"
            raise InputError(
                f"{source.file}: --config {source.folder} wants tensor {theirs} as {wanted}, the file {has}; "
                f"expected the configuration of this file, likely that of {example}"
            )


def state(pipe: Any) -> dict[str, Tensor]:
    """All weights of an SD or SDXL pipeline under the names of a single file, as ComfyUI and A1111 read them."""
    unet, vae = unet_names(pipe.unet), vae_names(pipe.vae)
    found = {f"model.diffusion_model.{unet[k]}": v for k, v in pipe.unet.state_dict().items()}
    for name, value in pipe.vae.state_dict().items():
        # the autoencoder's attention is written as 1x1 convolutions
        conv = ".attentions." in name and value.ndim == 2
        found[f"first_stage_model.{vae[name]}"] = value[:, :, None, None] if conv else value
    second = pipe.components.get("text_encoder_2")
    if second is not None:
        found |= _clip(pipe.text_encoder, "conditioner.embedders.0.transformer.")
        found |= _open_clip(second, "conditioner.embedders.1.model.")
        told = pipe.scheduler.config
        found |= {mark: torch.zeros(0) for mark, (field, value) in MARKS.items() if told.get(field) == value}
    elif pipe.text_encoder.config.hidden_act == "quick_gelu":
        found |= _clip(pipe.text_encoder, "cond_stage_model.transformer.")
    else:
        found |= _open_clip(pipe.text_encoder, "cond_stage_model.model.")
    return {name: value.detach().contiguous() for name, value in found.items()}


RESNET = {
    **{"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"},
    **{"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"},
}
UNET = {
    **{"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"},
    **{"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"},
    **{"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"},
    **{"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"},
    "mid_block.resnets.1": "middle_block.2",
}


def unet_names(unet: Any) -> dict[str, str]:
    """diffusers' name of every tensor of a UNet -> its name in a single file."""
    depth, parts = unet.config.layers_per_block + 1, dict(UNET)
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            parts[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{1 + i * depth + j}.0"
            parts[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{1 + i * depth + j}.1"
        parts[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{(i + 1) * depth}.0.op"
    for i, kind in enumerate(unet.config.up_block_types):
        for j in range(depth):
            parts[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{i * depth + j}.0"
            parts[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{i * depth + j}.1"
        place = 2 if "CrossAttn" in kind else 1
        parts[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{(i + 1) * depth - 1}.{place}.conv"
    return {name: _renamed(name, parts, RESNET if ".resnets." in name else {}) for name in unet.state_dict()}


def vae_names(vae: Any) -> dict[str, str]:
    """diffusers' name of every tensor of an autoencoder -> its name in a single file."""
    parts = {"encoder.conv_norm_out": "encoder.norm_out", "decoder.conv_norm_out": "decoder.norm_out"}
    for half in ("encoder", "decoder"):
        parts |= {f"{half}.mid_block.resnets.{k}": f"{half}.mid.block_{k + 1}" for k in range(2)}
        parts[f"{half}.mid_block.attentions.0"] = f"{half}.mid.attn_1"
    count = len(vae.config.block_out_channels)
    for i in range(count):
        for j in range(vae.config.layers_per_block + 1):
            parts[f"encoder.down_blocks.{i}.resnets.{j}"] = f"encoder.down.{i}.block.{j}"
            parts[f"decoder.up_blocks.{i}.resnets.{j}"] = f"decoder.up.{count - 1 - i}.block.{j}"
        parts[f"encoder.down_blocks.{i}.downsamplers.0"] = f"encoder.down.{i}.downsample"
        parts[f"decoder.up_blocks.{i}.upsamplers.0"] = f"decoder.up.{count - 1 - i}.upsample"
    inner = {
        **{"conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v"},
        "to_out.0": "proj_out",
    }
    return {name: _renamed(name, parts, inner) for name in vae.state_dict()}


def _renamed(name: str, outer: Mapping[str, str], inner: Mapping[str, str]) -> str:
    """The longest part of `outer` that begins the name replaced, then the part of `inner` behind it."""
    start = max((p for p in outer if name.startswith(f"{p}.")), key=len, default="")
    rest = name[len(start) :].removeprefix(".")
    middle = next((p for p in inner if rest.startswith(f"{p}.")), "")
    tail = inner[middle] + rest[len(middle) :] if middle else rest
    return f"{outer[start]}.{tail}" if start else tail


def _clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    names = {k: k if k.startswith("text_model.") else f"text_model.{k}" for k in encoder.state_dict()}
    return {f"{prefix}{names[k]}": v for k, v in encoder.state_dict().items()}


OPEN_CLIP = {
    **{"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"},
    "self_attn.out_proj": "attn.out_proj",
}


def _open_clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    """A text encoder in open_clip's layout: query, key and value in one matrix, the projection transposed."""
    given = {k.removeprefix("text_model."): v for k, v in encoder.state_dict().items()}
    found = {
        f"{prefix}positional_embedding": given.pop("embeddings.position_embedding.weight"),
        f"{prefix}token_embedding.weight": given.pop("embeddings.token_embedding.weight"),
        f"{prefix}ln_final.weight": given.pop("final_layer_norm.weight"),
        f"{prefix}ln_final.bias": given.pop("final_layer_norm.bias"),
    }
    if "text_projection.weight" in given:
        found[f"{prefix}text_projection"] = given.pop("text_projection.weight").T
    for name, value in given.items():
        layer, _, rest = name.removeprefix("encoder.layers.").partition(".")
        block = f"{prefix}transformer.resblocks.{layer}"
        if rest.startswith("self_attn.q_proj."):
            three = [given[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            found[f"{block}.attn.in_proj_{rest.rsplit('.', 1)[1]}"] = torch.cat(three)
        elif not rest.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
            found[f"{block}.{_renamed(rest, OPEN_CLIP, {})}"] = value
    return found


def write(pipe: Any, file: Path) -> None:
    """`state` of a pipeline as one safetensors file."""
    save_file(state(pipe), file, metadata={"format": "pt"})
