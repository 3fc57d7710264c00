"""What the launcher asks by its environment: the denoiser copied or sharded; DeepSpeed's words for it included."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign import processes
from diffalign.records import InputError
from diffalign.run import Run

# field of accelerate's deepspeed_config -> its variable, and where a deepspeed_config_file has it
FIELDS = {
    "zero_stage": ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "zero_optimization.stage"),
    "gradient_clipping": ("ACCELERATE_GRADIENT_CLIPPING", "gradient_clipping"),
    "gradient_accumulation_steps": ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps"),
    "offload_optimizer_device": (
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "zero_optimization.offload_optimizer.device"
    ),
    "offload_param_device": ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "zero_optimization.offload_param.device"),
    "train_batch_size": ("", "train_batch_size"),
    "train_micro_batch_size_per_gpu": ("", "train_micro_batch_size_per_gpu"),
}  # fmt: skip
# what a deepspeed_config_file may say beside these: how things are sent and printed, which alters no number
READ = ("zero_optimization", "bf16", "fp16", *(file for _, file in FIELDS.values() if "." not in file))
SILENT = ("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "zero_allow_untested_optimizer")
PARTS = ("stage", "offload_optimizer", "offload_param")
SENT = (
    "overlap_comm", "contiguous_gradients", "round_robin_gradients", "sub_group_size", "ignore_unused_parameters",
    "reduce_", "allgather_", "stage3_",
)  # fmt: skip
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}
# the last is a number to accelerate itself, which fails at "auto"
ASKS = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS")


@dataclass(frozen=True)
class Asked:
    """shards: over the processes, not copied to each. again: what is gathered for a forward pass is given back after
    it. said: what becomes of a launch in other words than ours, "" mostly.
    """

    shards: bool = False
    again: bool = True
    said: str = ""


def asked(run: Run) -> Asked:
    """What accelerate's launcher asks of this run: by `fsdp_config`, or by `deepspeed_config` and its stage.

    Raises InputError on the older kind of the first, and naming the field of the second where its engine would do what
    is not done here, or other than the run says.
    """
    if _on("ACCELERATE_USE_DEEPSPEED"):
        return _by_stage(run)
    if not _on("ACCELERATE_USE_FSDP"):
        return Asked()
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise InputError("fsdp_config: fsdp_version = 1; expected 2, as in train/accelerate/fsdp2.yaml")
    if _on("FSDP_OFFLOAD_PARAMS"):
        raise InputError("fsdp_config: fsdp_offload_params = true: nothing is offloaded here; expected false")
    return Asked(True, again=os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false")


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Within, accelerate is told of several processes and of no more: it would bring engines of its own."""
    hidden = {name: os.environ.pop(name) for name in ASKS if name in os.environ}
    try:
        yield
    finally:
        os.environ |= hidden


def _on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")


def _by_stage(run: Run) -> Asked:
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    config = {} if file in ("", "none") else _read(Path(file))
    world = processes.place()[1]
    micro = run.micro_batch or max(1, run.batch // world)
    ours = {
        "gradient_clipping": (run.optimizer.max_grad_norm, "optimizer.max_grad_norm"),
        "gradient_accumulation_steps": (-(-run.batch // (world * micro)), "micro-batches of a process and step"),
        "train_batch_size": (run.batch, "batch"),
        "train_micro_batch_size_per_gpu": (micro, "micro_batch"),
    }
    told = {field: _told(field, config) for field in FIELDS}
    for field, (value, name) in ours.items():
        if told[field] is not None and _number(told[field]) != value:
            expected = f'{value}, "auto" or nothing'
            raise InputError(
                f"{_place(field, file)} = {told[field]}: the run has {name} = {value}; expected {expected}"
            )
    for field in ("offload_optimizer_device", "offload_param_device"):
        if told[field] not in (None, "none"):
            raise InputError(f"{_place(field, file)} = {told[field]}: nothing is offloaded here; expected none")
    _check_precision(run, config, file)
    number = 2 if told["zero_stage"] is None else _number(told["zero_stage"])
    if number not in (0, 1, 2, 3):
        raise InputError(f"{_place('zero_stage', file)} = {told['zero_stage']}: expected 0, 1, 2 or 3")
    stage = int(number)
    if not stage:
        return Asked(said="DeepSpeed's stage 0 is asked for: each process holds the whole policy")
    kept = "given back after each forward pass" if stage == 3 else "kept until the backward pass"
    more = ", which is a part of stage 2" if stage == 1 else ""
    return Asked(
        True, again=stage == 3,
        said=f"DeepSpeed's stage {stage} is asked for{more}: weights, gradients and moments are sharded by FSDP2, "
        f"gathered weights are {kept}",
    )  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    """A deepspeed_config_file; raises InputError where it is none, or says what nobody here would do."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is no deepspeed_config_file ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization"), dict):
        raise InputError(f"{path}: zero_optimization: is missing; expected at least its stage")
    if "stage" not in config["zero_optimization"]:
        # which is 0 to DeepSpeed, and 2 to accelerate where no file is given
        raise InputError(f'{path}: zero_optimization.stage: is missing; expected 0, 1, 2, 3 or "auto"')
    for name, value in config.items():
        off = value in (False, None) or (isinstance(value, Mapping) and value.get("enabled") is False)
        if name not in READ + SILENT and not off:
            raise InputError(f"{path}: {name}: is not done here; expected none, the run says it all")
    for name, value in config["zero_optimization"].items():
        if name not in PARTS and not name.startswith(SENT) and value not in (False, None):
            raise InputError(f"{path}: zero_optimization.{name}: is not done here; expected none")
    return config


def _told(field: str, config: Mapping[str, Any]) -> Any:
    """What the file says of a field, or else the variable; None where that is nothing, or "auto"."""
    variable, path = FIELDS[field]
    found: Any = config
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    if found in (None, "auto"):
        found = os.environ.get(variable)
    return None if found in (None, "auto") else found


def _place(field: str, file: str) -> str:
    return f"deepspeed_config: {field}" if file in ("", "none") else f"{file}: {FIELDS[field][1]}"


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _check_precision(run: Run, config: Mapping[str, Any], file: str) -> None:
    """Raises InputError where another precision is asked for than the run's; "no" asks for none."""
    asks = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asks != "no" and PRECISIONS.get(asks) != run.precision:
        expected = 'expected "no", or the same'
        raise InputError(f"mixed_precision = {asks}: the run has precision = {run.precision}; {expected}")
    for name, ours in PRECISIONS.items():
        section = config.get(name)
        enabled = section.get("enabled", "auto") if isinstance(section, Mapping) else "auto"
        if enabled != "auto" and bool(enabled) != (run.precision == ours):
            told, expected = str(enabled).lower(), 'expected the same, "auto" or nothing'
            raise InputError(f"{file}: {name}.enabled = {told}: the run has precision = {run.precision}; {expected}")
