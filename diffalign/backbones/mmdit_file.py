"""Single files of Stable Diffusion 3 and FLUX.1, as their authors and ComfyUI write them: which parts one holds, and
under which names.

A file's tensors stack ours by rows (query, key and value in one matrix), and where ours say (scale, shift) they say
(shift, scale). Names: black-forest-labs/flux, Stability-AI/sd3.5.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.models.normalization import AdaLayerNormContinuous
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import T5EncoderModel

from diffalign import weights
from diffalign.adapters import FLUX_DOUBLE, FLUX_SINGLE
from diffalign.backbones.kinds import Kind
from diffalign.backbones.single_file import vae_names
from diffalign.records import InputError

# their tensor -> ours, stacked by rows
Layout = dict[str, tuple[str, ...]]

DENOISER = "model.diffusion_model."
VAE = {"StableDiffusion3Pipeline": "first_stage_model.", "FluxPipeline": "vae."}
ENCODERS = {
    "StableDiffusion3Pipeline": {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
    "FluxPipeline": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
}
# Stable Diffusion 3 was trained on the pooled state of CLIP-L as it is: where a file has this, nobody reads it
UNPROJECTED = "text_encoders.clip_l.transformer.text_projection.weight"
TIME, POOLED = "time_text_embed.timestep_embedder", "time_text_embed.text_embedder"
LAST = {"final_layer.linear": ("proj_out",), "final_layer.adaLN_modulation.1": ("norm_out.linear",)}
SD3 = {
    **{"x_embedder.proj": ("pos_embed.proj",), "context_embedder": ("context_embedder",)},
    **{"t_embedder.mlp.0": (f"{TIME}.linear_1",), "t_embedder.mlp.2": (f"{TIME}.linear_2",)},
    **{"y_embedder.mlp.0": (f"{POOLED}.linear_1",), "y_embedder.mlp.2": (f"{POOLED}.linear_2",)},
    **LAST,
}
SD3_BLOCK = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.proj": ("attn.to_out.0",),
    **{"x_block.attn.ln_q": ("attn.norm_q",), "x_block.attn.ln_k": ("attn.norm_k",)},
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    **{"x_block.attn2.ln_q": ("attn2.norm_q",), "x_block.attn2.ln_k": ("attn2.norm_k",)},
    **{"x_block.mlp.fc1": ("ff.net.0.proj",), "x_block.mlp.fc2": ("ff.net.2",)},
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.proj": ("attn.to_add_out",),
    **{"context_block.attn.ln_q": ("attn.norm_added_q",), "context_block.attn.ln_k": ("attn.norm_added_k",)},
    **{"context_block.mlp.fc1": ("ff_context.net.0.proj",), "context_block.mlp.fc2": ("ff_context.net.2",)},
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}
GUIDANCE = "time_text_embed.guidance_embedder"
FLUX = {
    **{"img_in": ("x_embedder",), "txt_in": ("context_embedder",)},
    **{"time_in.in_layer": (f"{TIME}.linear_1",), "time_in.out_layer": (f"{TIME}.linear_2",)},
    **{"vector_in.in_layer": (f"{POOLED}.linear_1",), "vector_in.out_layer": (f"{POOLED}.linear_2",)},
    **{"guidance_in.in_layer": (f"{GUIDANCE}.linear_1",), "guidance_in.out_layer": (f"{GUIDANCE}.linear_2",)},
    **LAST,
}
# an adapter has no place for norms, so the table of its layout lacks them
FLUX_DOUBLE_NORMS = {
    **{"img_attn.norm.query_norm": ("attn.norm_q",), "img_attn.norm.key_norm": ("attn.norm_k",)},
    **{"txt_attn.norm.query_norm": ("attn.norm_added_q",), "txt_attn.norm.key_norm": ("attn.norm_added_k",)},
}
FLUX_SINGLE_NORMS = {"norm.query_norm": ("attn.norm_q",), "norm.key_norm": ("attn.norm_k",)}
# what stands beside a matrix in 8 bits: W = scale * stored; the others are for those who multiply in 8 bits
SCALES = ("scale_weight", "weight_scale")
BESIDE = (*SCALES, "scale_input", "input_scale", "comfy_quant", "scaled_fp8")


def layout(part: nn.Module) -> Layout:
    """Under which names a file has a denoiser, an autoencoder or a text encoder, behind the part's own beginning."""
    names = list(part.state_dict())
    if isinstance(part, (FluxTransformer2DModel, SD3Transformer2DModel)):
        return _denoiser(part)
    if isinstance(part, AutoencoderKL):
        return {theirs: (ours,) for ours, theirs in vae_names(part).items()}
    if isinstance(part, T5EncoderModel):
        return {name: (name,) for name in names if name != "encoder.embed_tokens.weight"}  # which is `shared`
    return {name if name.startswith("text_") else f"text_model.{name}": (name,) for name in names}


def _denoiser(part: nn.Module) -> Layout:
    modules, blocks, found = dict(SD3), [("joint_blocks", "transformer_blocks", SD3_BLOCK)], {}
    if isinstance(part, FluxTransformer2DModel):
        modules = dict(FLUX)
        blocks = [
            ("double_blocks", "transformer_blocks", FLUX_DOUBLE | FLUX_DOUBLE_NORMS),
            ("single_blocks", "single_transformer_blocks", FLUX_SINGLE | FLUX_SINGLE_NORMS),
        ]
    for theirs, ours, table in blocks:
        for i in range(len(part.get_submodule(ours))):
            modules |= {f"{theirs}.{i}.{k}": tuple(f"{ours}.{i}.{m}" for m in v) for k, v in table.items()}
    held = part.state_dict().keys()
    for theirs, ours in modules.items():
        for kind in ("weight", "bias"):
            if f"{ours[0]}.{kind}" in held:
                name = f"{theirs}.{kind}".replace("_norm.weight", "_norm.scale")
                found[name] = tuple(f"{module}.{kind}" for module in ours)
    return found | ({"pos_embed": ("pos_embed.pos_embed",)} if "pos_embed.pos_embed" in held else {})


def beginnings(names: Collection[str], pipeline: str) -> dict[str, str]:
    """The parts of a pipeline that a file of these names holds, and what the names of each begin with."""
    known = {f"text_encoders.{name}.transformer.": part for part, name in ENCODERS[pipeline].items()}
    known |= dict.fromkeys(VAE.values(), "vae")
    found = {part: start for start, part in known.items() if any(n.startswith(start) for n in names)}
    return found | {"transformer": DENOISER if any(n.startswith(DENOISER) for n in names) else ""}


def check(source: weights.Source, kind: Kind, parts: Mapping[str, nn.Module]) -> None:
    """Raise InputError unless a file's parts are those that `parts` says, and the folder of `source` has the others."""
    found = weights.places_in(source.file)
    starts = beginnings(found, kind.pipeline)
    for part in sorted(starts.keys() & parts.keys(), key=lambda name: name != "transformer"):
        _check_part(source, found, starts[part], part, parts[part], kind)
    for part in (elsewhere := sorted(parts.keys() - starts.keys())):
        weights.check_part(source.folder / part)
    missing = [part for part in elsewhere if not next((source.folder / part).glob("*.safetensors"), None)]
    if missing:
        # a snapshot in the hub's cache gets more of the same repository, and then holds it
        cached = source.folder.parent.parent.name if source.folder.parent.name == "snapshots" else ""
        model = cached.removeprefix("models--").replace("--", "/") or kind.example
        place = f" --revision {source.folder.name}" if cached else f" --local-dir {source.folder}"
        # text_encoder_3 is T5, which Stable Diffusion 3 can do without
        without = ", or give null for text_encoder_3 and tokenizer_3 in its model_index.json, to do without"
        raise InputError(
            f"{source.file}: holds no {', '.join(missing)}, and --config {source.folder} no weights of that; fetch "
            f"them: `hf download {model} {' '.join(f'{part}/' for part in missing)}{place}`"
            f"{without if 'text_encoder_3' in missing else ''}"
        )


def _check_part(
    source: weights.Source,
    found: Mapping[str, weights.Place],
    start: str,
    part: str,
    module: nn.Module,
    kind: Kind,
) -> None:
    shapes, known = {n: list(v.shape) for n, v in module.state_dict().items()}, layout(module)
    advice = f"expected the configuration of this file, likely that of {kind.example}"
    for theirs, ours in known.items():
        name, wanted = start + theirs, shapes[ours[0]]
        if name == UNPROJECTED:
            continue
        if len(ours) > 1:
            wanted = [sum(shapes[n][0] for n in ours), *wanted[1:]]
        dtype, there, _ = found.get(_held(name, found), ("", None, 0))
        # the autoencoder's attention is written as 1x1 convolutions
        if there not in (wanted, [*wanted, 1, 1]):
            has = "lacks it" if there is None else f"has it as {there}"
            told = f"--config {source.folder} wants tensor {name} as {wanted}, the file {has}"
            raise InputError(f"{source.file}: {told}; {advice}")
        scale = _scale(name, found)
        if not dtype.startswith(("float", "bfloat")) or (scale and found[scale][1] not in ([], [1])):
            told = f"tensor {name} is stored as {dtype}{f' with a scale of shape {found[scale][1]}' if scale else ''}"
            raise InputError(f"{source.file}: {told}; expected floating point, or 8 bits of it with one scale a tensor")
    if part == "transformer":
        others = (n for n in found if n.startswith(start) and not n.startswith((*VAE.values(), "text_encoders.")))
        rest = (n for n in others if n.removeprefix(start) not in known and not n.endswith(BESIDE))
        if foreign := next(rest, None):
            told = f"holds tensor {foreign}, which the transformer of --config {source.folder} has not"
            raise InputError(f"{source.file}: {told}; {advice}")


def _held(name: str, found: Collection[str]) -> str:
    """T5's embeddings go by two names, and some files have the one, some the other."""
    other = name.replace("t5xxl.transformer.shared.", "t5xxl.transformer.encoder.embed_tokens.")
    return name if name in found else other


def _scale(name: str, found: Collection[str]) -> str:
    module, _, kind = name.rpartition(".")
    known = [f"{module}.{scale}" for scale in SCALES] if kind == "weight" else []
    return next((n for n in known if n in found), "")


def read(source: weights.Source, start: str, module: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors of a part by our names, each in memory of its own, in `dtype` or as they are stored."""
    found = weights.places_in(source.file)
    shapes, swapped, state = {n: v.shape for n, v in module.state_dict().items()}, _swapped(module), {}
    for theirs, ours in layout(module).items():
        if start + theirs == UNPROJECTED:
            state[ours[0]] = torch.eye(*shapes[ours[0]], dtype=dtype)
            continue
        name = _held(start + theirs, found)
        whole, scale = weights.read(source.file, found[name]), _scale(name, found)
        if scale:
            whole = whole.float() * weights.read(source.file, found[scale]).float()
        whole = whole if dtype is None else whole.to(dtype)
        # a view into what is stacked would hold all of it, at another alignment
        parts = [rows.clone() for rows in whole.split([shapes[n][0] for n in ours])] if len(ours) > 1 else [whole]
        for one, value in zip(ours, parts, strict=True):
            state[one] = (torch.cat(value.chunk(2)[::-1]) if one in swapped else value).reshape(shapes[one])
    return state


def write(pipe: Any, file: Path) -> None:
    """All weights of a pipeline as one safetensors file, as ComfyUI's "Load Checkpoint" reads it.

    Raises InputError where the pipeline projects what such a file has no projection of.
    """
    name = type(pipe).__name__
    starts = {part: f"text_encoders.{one}.transformer." for part, one in ENCODERS[name].items()}
    starts |= {"transformer": DENOISER, "vae": VAE[name]}
    parts = {start: pipe.components[part] for part, start in starts.items() if pipe.components[part] is not None}
    found = {start + k: v for start, part in parts.items() for k, v in stacked(part, part.state_dict()).items()}
    projection = found.get(UNPROJECTED, torch.eye(1))
    if not torch.equal(projection.float(), torch.eye(*projection.shape)):
        told = "text_encoder: has a projection, of which a single file of Stable Diffusion 3 has none"
        raise InputError(f"{told}; use --to merged")
    save_file(found, file, metadata={"format": "pt"})


def stacked(part: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `read`: the tensors of a part by a file's names, without the beginning."""
    swapped, found = _swapped(part), {}
    for theirs, ours in layout(part).items():
        value = torch.cat([torch.cat(state[n].chunk(2)[::-1]) if n in swapped else state[n] for n in ours])
        conv = isinstance(part, AutoencoderKL) and ".attn_1." in theirs and value.ndim == 2
        found[theirs] = (value[:, :, None, None] if conv else value).detach().contiguous()
    return found


def _swapped(module: nn.Module) -> set[str]:
    found = [name for name, inner in module.named_modules() if isinstance(inner, AdaLayerNormContinuous)]
    return {f"{name}.linear.{kind}" for name in found for kind in ("weight", "bias")}
