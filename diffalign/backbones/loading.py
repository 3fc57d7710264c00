"""What the families share in reading a pipeline: no guess from names, no network, no pickle."""

import logging
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from diffalign import weights
from diffalign.backbones import mmdit_file
from diffalign.diffusion import VP, Flow
from diffalign.records import InputError

P = TypeVar("P")
# judge or guard pictures, or stand for pictures as prompts: nothing that is drawn here needs them
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


def read_pipeline(kind: type[P], source: weights.Source, dtype: torch.dtype, device: torch.device) -> P:
    """The pipeline of a model, frozen, in eval mode, its components that the index gives as null left out.

    The autoencoder is in float32 whatever the rest is in: SDXL's overflows to NaN in float16, in bfloat16 all of them
    round what they encode.
    Raises InputError naming the folder or file where a component is missing, truncated or not in safetensors.
    """
    index = weights.index(source.folder)
    wanted = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    absent = {name: None for name, entry in wanted.items() if entry[0] is None or name in UNUSED}
    for name in sorted(wanted.keys() - absent.keys()):
        if not next((source.folder / name).glob("*.*"), None):
            raise InputError(
                f"{source.folder}: holds no {name}/, which its model_index.json names; copy the whole model"
            )
    hollow = {} if source.encoders else hollow_parts(source, denoiser=False)
    for part in sorted(wanted.keys() - absent.keys() - hollow.keys()) if source.file is None else ():
        weights.check_part(source.folder / part)
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity(logging.CRITICAL)  # their errors are raised too, and said by us in one line
        library.disable_progress_bar()
    # the parts of other files are read by names and tables of our own, and what they lack from the folder
    converted = source.file is not None and index["_class_name"] not in mmdit_file.ENCODERS
    try:
        held = {} if source.file is None or converted else _held(source, index["_class_name"], dtype)
        pipe = (_from_file if converted else _from_folder)(kind, source, absent | hollow | held, dtype)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        place = source.file or source.folder
        raise InputError(f"{place}: cannot be loaded as {kind.__name__}: {said(error)}") from None
    for name, module in pipe.components.items():
        if isinstance(module, nn.Module) and name not in hollow:
            if missing := next((n for n, p in module.named_parameters() if p.is_meta), None):
                raise InputError(f"{source.file or source.folder}: holds no tensor {missing} of the {name}")
            module.eval().requires_grad_(False)
            if converted:
                module.to(_wide(dtype) if name == "vae" else dtype)
            if name not in held and (converted or not weights.reread(module, source.folder / name)):
                weights.settle(module)
            module.to(device)
    return pipe


def hollow_parts(source: weights.Source, *, denoiser: bool) -> dict[str, nn.Module]:
    """Autoencoder and text encoders, and the denoiser where wanted, by configuration, without memory for weights."""
    index, made = weights.index(source.folder), {}
    ours = ("transformer", "unet", "vae") if denoiser else ("vae",)
    for name, entry in sorted(index.items()):
        library, kind = entry if isinstance(entry, list) else (None, None)
        try:
            with torch.device("meta"):
                if library == "diffusers" and name in ours:
                    known = getattr(diffusers, kind)
                    made[name] = known.from_config(known.load_config(source.folder / name))
                elif library == "transformers" and name.startswith("text_encoder"):
                    known = getattr(transformers, kind)
                    made[name] = known(known.config_class.from_pretrained(source.folder / name, local_files_only=True))
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise InputError(f"{source.folder / name}: is no {kind} ({said(error)})") from None
    return {name: module.eval().requires_grad_(False) for name, module in made.items()}


def _held(source: weights.Source, pipeline: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The parts that a single file itself holds."""
    starts, made = mmdit_file.beginnings(weights.header(source.file), pipeline), {}
    for name, module in hollow_parts(source, denoiser=True).items():
        if name not in starts or not (source.encoders or name == "transformer"):
            continue
        if isinstance(module, transformers.PreTrainedModel):
            # in float16 T5 keeps some in float32, which its own loader knows; it makes what no file holds, too
            wanted = None if dtype == torch.float16 else dtype
            state = mmdit_file.read(source, starts[name], module, wanted)
            made[name] = type(module).from_pretrained(None, config=module.config, state_dict=state, dtype=dtype)
        else:
            wanted = _wide(dtype) if name == "vae" else dtype
            module.load_state_dict(mmdit_file.read(source, starts[name], module, wanted), assign=True)
            made[name] = module
    return made


def _from_folder(kind: type[P], source: weights.Source, absent: dict[str, Any], dtype: torch.dtype) -> P:
    # pickles are refused, not preferred against: use_safetensors=True raises where only a .bin file is there
    dtypes = {"default": dtype, "vae": _wide(dtype)}
    return kind.from_pretrained(
        source.folder, **absent, dtype=dtypes, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=True
    )


def _from_file(kind: type[P], source: weights.Source, absent: dict[str, Any], dtype: torch.dtype) -> P:
    # without a config it would look for one on the hub; with a local folder it does not
    return kind.from_single_file(
        str(source.file), config=str(source.folder), **absent, torch_dtype=_wide(dtype), local_files_only=True
    )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def said(error: Exception) -> str:
    """What an error says, in one line of no great length."""
    return (" ".join(str(error).split()) or type(error).__name__)[:240]


def process_of(config: Any, source: weights.Source) -> VP:
    """The forward process that a VP scheduler's config describes; raises InputError on one that we do not know."""
    place = source.folder / "scheduler" / "scheduler_config.json"
    if "beta_schedule" not in config or config.get("trained_betas") is not None:
        what = "own betas" if "beta_schedule" in config else "no beta schedule"
        raise InputError(f"{place}: {what}; expected the scheduler of a variance-preserving process, as DDIM's")
    try:
        return VP(
            schedule=config.beta_schedule,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            steps=config.num_train_timesteps,
            zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
            network=config.prediction_type,
            prediction=config.prediction_type,
        )
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None


def flow_of(config: Any, source: weights.Source) -> Flow:
    """The rectified flow that a scheduler's config describes; raises InputError on one that is none."""
    kind = config.get("prediction_type", "flow_prediction")
    if kind != "flow_prediction":
        place = source.folder / "scheduler" / "scheduler_config.json"
        raise InputError(f"{place}: prediction type {kind!r}; expected flow_prediction")
    return Flow(scale=float(config.num_train_timesteps))


def shape_of(height: int, width: int, channels: int, factor: int, multiple: int) -> tuple[int, int, int]:
    """(channels, height / factor, width / factor); raises InputError on a size that `multiple` does not divide."""
    if height <= 0 or width <= 0 or height % multiple or width % multiple:
        raise InputError(f"size {height}x{width}: this model draws multiples of {multiple} pixels")
    return channels, height // factor, width // factor
