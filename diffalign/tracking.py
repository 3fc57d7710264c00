"""Where a run's numbers go beside `metrics.jsonl`: tensorboard, or what accelerate's trackers know (`log_with`)."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from torch.utils.tensorboard import SummaryWriter

from diffalign.records import InputError
from diffalign.run import Run, to_data


class Board(Protocol):
    """What takes numbers and pictures by step."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by name."""

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Log a picture."""

    def close(self) -> None:
        """Write what is left."""


class Silent:
    """A board for the processes that do not log."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Tensorboard:
    """Event files; what an interrupted run logged after `step` is purged."""

    def __init__(self, folder: Path, step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, png: bytes, step: int) -> None:
        self._writer.add_image(name, _pixels(png), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Tracker:
    """One of accelerate's trackers, begun with the run as its configuration."""

    def __init__(self, accelerator: Accelerator, run: Run) -> None:
        self._accelerator = accelerator
        out = Path(run.out)
        accelerator.init_trackers("diffalign", _flat(to_data(run)), {"wandb": {"name": out.name, "dir": str(out)}})

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._accelerator.log(dict(values), step=step)

    def picture(self, name: str, png: bytes, step: int) -> None:
        for tracker in self._accelerator.trackers:
            if tracker.name == "wandb":
                tracker.log_images({name: [PIL.Image.open(io.BytesIO(png))]}, step=step)

    def close(self) -> None:
        self._accelerator.end_training()


def expect(name: str) -> None:
    """Raise InputError where the package of a tracker is not installed, which accelerate would leave out."""
    if name not in ("tensorboard", "none", *map(str, get_available_trackers())):
        raise InputError(f"log_with = {name}: its package is not installed; pip install it, or use tensorboard")


def board(run: Run, accelerator: Accelerator, step: int) -> Board:
    """The board that a run asks for."""
    if run.log_with == "tensorboard":
        return Tensorboard(Path(run.out) / "tensorboard", step) if accelerator.is_main_process else Silent()
    if run.log_with == "none":
        return Silent()
    return Tracker(accelerator, run)


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB"))


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names; lists as text, because trackers take numbers and texts alone."""
    found: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            found |= _flat(item, f"{prefix}{name}.")
        else:
            found[prefix + name] = str(item) if isinstance(item, list) else item
    return found
