"""A run or an adapter -> files that others load, each checked by loading it again; and the model card beside them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffalign import adapters, backbones, card, checkpoint, entries, folders, weights
from diffalign.backbones.base import Backbone, Conditioning
from diffalign.backbones.lora import check_alone
from diffalign.records import InputError
from diffalign.streams import normal

Layout = Literal["diffusers", "kohya", "comfyui", "merged", "single-file"]
FILES = ("kohya", "comfyui", "single-file")
Told = tuple[Tensor, Tensor, Conditioning]
# how far outputs may be apart: of what the policy moves where weights are float32, else of the output
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}


def convert(
    source: Path,
    /,
    *,
    to: Layout,
    out: Path,
    model: str = "",
    config: str = "",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    compared: Path | None = None,
    gallery: Path | None = None,
    push: str = "",
) -> str:
    """Write a run's policy, or an adapter, in a layout that others load.

    What is written is loaded again and must adapt the same modules and give the same denoiser output, else nothing is
    kept.

    Args:
        source: Run folder, its checkpoint-N, adapter file, or folder that holds one.
        to: "diffusers" (folder with pytorch_lora_weights.safetensors), "kohya" or "comfyui" (one adapter file),
            "merged" (whole model folder with the policy's weights), "single-file" (the same as one file; SD, SDXL,
            SD3 and FLUX.1).
        out: Folder, or for kohya, comfyui and single-file a .safetensors file.
        model: What the adapter was trained on; a run knows by itself.
        config: Folder in diffusers' layout, or hub id, that says what a single file `model` is.
        dtype: Of the weights of a merged model; adapters stay in float32.
        compared: Folder that `compare` wrote, for the win rates in the model card of a folder.
        gallery: Record folder of images, the first eight of which go into the model card of a folder.
        push: Hub id "owner/name" to upload a folder to.
    """
    home = source.parent if (source / "state.json").is_file() else source
    run = entries.settings(home)["run"] if (home / "run.json").is_file() else {}
    model, config = model or run.get("model", ""), config or run.get("config", "")
    full = run.get("policy", {}).get("class", "").endswith(":Full")
    _check(source, to, out, model, full=full, push=push)
    comparison = _comparison(compared)
    backbone = backbones.load(model, config=config)
    _check_family(backbone, to)
    told = _probe(backbone)
    plain = _output(backbone, told)
    adapter = {} if full else _load(backbone, source)
    if full:
        there = source / "policy" / backbone.part
        _load_full(backbone, [source / "policy.safetensors"] if home != source else sorted(there.glob("*.safetensors")))
    wanted = _output(backbone, told)
    with checkpoint.spare(out) as temporary:
        if to in ("merged", "single-file"):
            adapters.fuse(backbone.denoiser, adapter)
            written = _write_model(backbone, to, temporary, dtype)
            there = weights.locate(model, config).folder
            found = _output(backbones.load(str(written), config=str(there) if written.is_file() else ""), told)
        else:
            written = _write_adapter(backbone, to, temporary, adapter)
            adapters.remove(backbone.denoiser)
            found = _reloaded(backbone, to, written, adapter, told)
        _compare(found, wanted, plain, dtype if to in ("merged", "single-file") else "float32")
        if to not in FILES:
            known = card.Known(run, comparison, _pictures(gallery, temporary))
            holds = "unloaded" if to == "diffusers" and not backbone.loads_adapters else to
            (temporary / "README.md").write_text(card.write(known, model=model, to=holds), encoding="utf-8")
        checkpoint.publish(out, written if to in FILES else temporary)
    if push:
        weights.push(out, push)
    return f"{out}: {to}, read back with the same denoiser output{f'; pushed to {push}' if push else ''}"


def _comparison(folder: Path | None) -> dict[str, Any]:
    """What `compare` wrote; {} of None; raises InputError where it is not there."""
    if folder is None:
        return {}
    try:
        return json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{folder}: holds no compare.json; expected a folder that `diffalign compare` wrote") from None


def _pictures(folder: Path | None, out: Path) -> list[tuple[str, str]]:
    """Copy the first eight images of a record folder to `out`/pictures: (file, prompt) of each."""
    if folder is None:
        return []
    rows, texts = folders.image_rows(folder), folders.texts(folder)
    first = dict(sorted(rows.items(), key=lambda item: (item[1]["index"] or 0, item[0]))[:8])
    (out / "pictures").mkdir()
    found = []
    for name, data in folders.image_bytes(folder, first):
        (out / "pictures" / f"{name}.png").write_bytes(data)
        found.append((f"pictures/{name}.png", texts[first[name]["prompt_id"]]))
    return sorted(found)


def _check(source: Path, to: Layout, out: Path, model: str, *, full: bool, push: str) -> None:
    if not source.exists():
        raise InputError(f"{source}: no such run folder or adapter file")
    if not model:
        raise InputError(f"{source}: is no run folder, so give --model, what the adapter was trained on")
    if full and to not in ("merged", "single-file"):
        raise InputError(f"{source}: was trained fully, so there is no adapter; expected --to merged or single-file")
    if to in FILES and out.suffix != ".safetensors":
        raise InputError(f"{out}: --to {to} writes one file; expected a name that ends in .safetensors")
    if to not in FILES and out.suffix == ".safetensors":
        raise InputError(f"{out}: --to {to} writes a folder; expected a name without .safetensors")
    if out.exists():
        raise InputError(f"{out}: exists; choose another --out")
    if push and to in FILES:
        raise InputError(f"push = {push}: only folders are pushed; expected --to diffusers or merged")


def _check_family(backbone: Backbone, to: Layout) -> None:
    if to == "single-file" and backbone.single_file is None:
        known = "Stable Diffusion and FLUX.1"
        raise InputError(f"--to single-file: is written for {known}, not for {backbone.family}; use --to merged")
    if to == "kohya" and backbone.kohya is None:
        other = "comfyui or diffusers" if backbone.comfyui else "diffusers"
        raise InputError(f"--to kohya: diffusers reads no such file of {backbone.family}; use --to {other}")
    if to == "comfyui" and not backbone.comfyui:
        raise InputError(f"--to comfyui: ComfyUI itself knows no {backbone.family}; use --to diffusers")


def _load(backbone: Backbone, source: Path) -> adapters.Adapter:
    file = weights.adapter_file(source)
    check_alone(file)
    backbone.load_lora(file)
    return adapters.of(backbone.denoiser)


def _load_full(backbone: Backbone, files: Sequence[Path]) -> None:
    """Put the trained weights of a full run on the denoiser; raises InputError where they are not all there."""
    for file in files:
        weights.header(file)
    found = {name: value for file in files for name, value in load_file(file).items()}
    wanted = backbone.denoiser.state_dict()
    learnt = dict(backbone.denoiser.named_parameters())
    for name in sorted(found.keys() | learnt.keys()):
        if name not in found or name not in wanted or found[name].shape != wanted[name].shape:
            raise InputError(f"{files[0] if files else backbone.part}: tensor {name} does not fit this model")
    backbone.denoiser.load_state_dict(found, strict=False)


def _write_adapter(backbone: Backbone, to: Layout, folder: Path, adapter: adapters.Adapter) -> Path:
    file = folder / "pytorch_lora_weights.safetensors"
    if to == "kohya" or (to == "comfyui" and backbone.part == "unet"):
        save_file(backbone.kohya(adapter, backbone.denoiser), file, metadata={"format": "pt"})
    else:
        # ComfyUI reads this layout without its metadata, and so without alpha
        backbone.save_lora(folder, *adapters.peft(adapters.baked(adapter) if to == "comfyui" else adapter))
    weights.settle_header(file)
    return file


def _write_model(backbone: Backbone, to: Layout, folder: Path, dtype: str) -> Path:
    """The whole model; its file, or the folder."""
    pipe = backbone.pipeline(backbone.denoiser)
    pipe.to(dtype=getattr(torch, dtype))
    if to == "merged":
        pipe.save_pretrained(folder)
        return folder
    file = folder / "model.safetensors"
    backbone.single_file(pipe, file)
    return file


def _reloaded(backbone: Backbone, to: Layout, file: Path, adapter: adapters.Adapter, told: Told) -> Tensor:
    try:
        backbone.load_lora(file)
    except InputError as error:
        why = str(error).removeprefix(f"{file}: ")
        raise InputError(
            f"--to {to}: diffusers does not read back what was written ({why}); nothing was kept"
        ) from None
    # a reader that splits fused matrices makes up modules that change nothing
    again = {name for name, factors in adapters.of(backbone.denoiser).items() if name in adapter or factors.up.any()}
    if again != adapter.keys():
        raise InputError(f"{file.name}: adapts {len(again)} modules when read back, expected {len(adapter)}")
    return _output(backbone, told)


def _probe(backbone: Backbone) -> Told:
    """A small noisy latent, a time and the conditioning of a prompt, to compare outputs at."""
    size = next(s for s in (32, 64, 128, 256, 512, 1024) if _divides(backbone, s))
    x = torch.from_numpy(normal("probe", 0, shape=(2, *backbone.latent_shape(size, size))))
    t = backbone.process.model_time(backbone.process.time(torch.tensor([0.3, 0.7], dtype=torch.float64)))
    told = backbone.encode_prompts(["a photo of a cat", "a red square on a blue table"])
    return x, t, told | backbone.size_conditioning([(size, size)] * 2, (size, size))


def _divides(backbone: Backbone, size: int) -> bool:
    try:
        backbone.latent_shape(size, size)
    except InputError:
        return False
    return True


@torch.no_grad()
def _output(backbone: Backbone, told: Told) -> Tensor:
    return backbone.predict(backbone.denoiser, *told[:2], told[2]).float()


def _compare(found: Tensor, wanted: Tensor, plain: Tensor, dtype: str) -> None:
    """Raise InputError unless the written policy answers as the given one, relative to what it moves its base."""
    moved, apart = (wanted - plain).norm(), (found - wanted).norm()
    limit = TOLERANCE[dtype] * (moved if dtype == "float32" else wanted.norm())
    if not apart <= limit + 1e-6 * wanted.norm():
        raise InputError(f"written outputs differ by {apart:.3g}, where the policy moves {moved:.3g}; nothing was kept")
