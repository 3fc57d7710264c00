"""Adapter files onto denoisers: refused before they are loaded where they are of another model."""

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.utils import set_peft_model_state_dict
from safetensors import safe_open
from torch import nn

from diffalign import adapters, weights
from diffalign.backbones.loading import said
from diffalign.records import InputError

DOWN = (".lora_A.weight", ".lora_down.weight", ".lora.down.weight")
OTHER = {
    ".lokr_": "a LoKr",
    ".hada_": "a LoHa",
    ".oft_": "an OFT",
    "lora_magnitude_vector": "a DoRA",
    "dora_": "a DoRA",
}
TEXT = ("text_encoder", "lora_te")


def read_lora(pipe: Any, file: Path, part: str) -> None:
    """Put an adapter file, in the layout of diffusers, kohya or ComfyUI, on a pipeline's denoiser.

    Raises InputError where the file is damaged, is of another part than `part`, or does not fit the network.
    """
    denoiser, expected = pipe.components[part], _check(pipe.components[part], file, part)
    try:
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True, use_safetensors=True)
    except (ValueError, RuntimeError, KeyError, AttributeError, IndexError, AssertionError) as error:
        raise InputError(f"{file}: does not fit this model ({said(error)})") from None
    _settled(denoiser, file, expected)


def adapt(denoiser: Any, file: Path, part: str) -> None:
    """`read_lora` in diffusers' layout, for a denoiser whose class there has no loader of its own."""
    expected = _check(denoiser, file, part)
    with safe_open(file, "pt") as found:
        text = (found.metadata() or {}).get("lora_adapter_metadata", "{}")
        mine = [name for name in found.keys() if name.startswith(f"{part}.")]  # noqa: SIM118
        tensors = {name.removeprefix(f"{part}."): found.get_tensor(name) for name in mine}
    try:
        told = {k.removeprefix(f"{part}."): v for k, v in dict(json.loads(text)).items()} or adapters.metadata(tensors)
        inject_adapter_in_model(LoraConfig(**told), denoiser, "default")
        set_peft_model_state_dict(denoiser, tensors, "default")
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"{file}: does not fit this model ({said(error)})") from None
    _settled(denoiser, file, expected)


def check_alone(file: Path) -> None:
    """Raise InputError naming a tensor where an adapter file is of a text encoder, too."""
    if text := next((name for name in weights.header(file) if name.startswith(TEXT)), None):
        raise InputError(f"{file}: adapts a text encoder too ({text}); expected an adapter of the denoiser alone")


def _check(denoiser: nn.Module, file: Path, part: str) -> int:
    """How many modules the file adapts, or 0 where its layout fuses some."""
    found = weights.header(file)
    if kind := next((what for mark, what in OTHER.items() if any(mark in name for name in found)), None):
        raise InputError(f"{file}: is {kind} adapter; expected a plain LoRA")
    downs = [name for name in found if name.endswith(DOWN) and not name.startswith(TEXT)]
    if not downs:
        raise InputError(
            f"{file}: holds no LoRA of a denoiser; expected an adapter, found {min(found, default='nothing')}"
        )
    other = {"unet": "transformer", "transformer": "unet"}[part]
    if any(name.startswith(f"{other}.") for name in downs):
        raise InputError(
            f"{file}: adapts a {other!r}, but this model's denoiser is its {part}; it is of another family"
        )
    modules = dict(denoiser.named_modules())
    flat = {name.replace(".", "_"): name for name in modules}
    for name in downs:
        if name.startswith(f"{part}.") and name.endswith(".lora_A.weight"):
            module = name.removeprefix(f"{part}.").removesuffix(".lora_A.weight")
            if module not in modules:
                raise InputError(f"{file}: adapts {module}, which this model has not; it is of another model")
        else:  # kohya's names, of which there are several dialects: diffusers knows the rest
            module = flat.get(name.removeprefix("lora_unet_").removesuffix(".lora_down.weight"))
            if module is None:
                continue
        shape, weight = found[name], modules[module].weight
        if shape[1] != weight.shape[1]:
            raise InputError(f"{file}: {module} takes {shape[1]} features in it, {weight.shape[1]} in this model")
    fused = any("_qkv." in name or "_linear1." in name for name in downs)
    return 0 if fused else len(downs)


def _settled(denoiser: nn.Module, file: Path, expected: int) -> None:
    loaded = len(adapters.of(denoiser))
    if not loaded or (expected and loaded != expected):
        raise InputError(f"{file}: adapts {expected} modules, of which this model has {loaded}; it is of another model")
    weights.settle(denoiser)
