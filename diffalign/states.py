"""Visits -> what the networks are shown: noisy states with their targets, and the conditioning beside them."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffalign import inversion, wrapping
from diffalign.backbones.base import Backbone, Conditioning, select
from diffalign.dataset import Visit
from diffalign.diffusion import EPSILON, VP, Noised, Process, draw_noise, draw_time
from diffalign.material import Material
from diffalign.records import InputError
from diffalign.run import Run, States
from diffalign.streams import normal, stream

DROPPED = None  # in the place of a text: the unconditional branch


def process(states: States, native: Process) -> Process:
    """The model's process as `states` wants it; raises InputError where the model has none such."""
    inversion.check(states.inversion, native)
    changes = {} if states.prediction == "native" else {"prediction": states.prediction}
    if states.zero_terminal_snr:
        changes |= {"zero_terminal_snr": True}
    if not changes:
        return native
    if not isinstance(native, VP):
        name, value = next(iter(changes.items()))
        raise InputError(f"states.{name} = {value}: this model is a flow; expected a variance-preserving one")
    changed = dataclasses.replace(native, **changes)
    if changed.zero_terminal_snr and changed.prediction != changed.network:
        raise InputError(
            f"states.prediction = {changed.prediction}: with zero terminal SNR the last step tells nothing of it to a "
            f"network that outputs {changed.network}"
        )
    return changed


def clean(run: Run, process: Process, material: Material, visits: Sequence[Visit]) -> tuple[Tensor, Tensor]:
    """(x0, t) of the images of the visits, on the host; one time per group."""
    x0 = material.x0(visits)
    u = [draw_time(run.seed, v.group.id, v.draw) for v in visits for _ in v.group.images]
    return x0, process.time(run.states.times(torch.tensor(u, dtype=torch.float64)))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; from pinned memory to an accelerator, so that nothing waits for it."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def forward(run: Run, process: Process, x0: Tensor, t: Tensor, visits: Sequence[Visit]) -> Noised:
    """x_t by forward noise, named by (group, draw), and by the image where a group does not share it; on the host."""
    shape, independent = tuple(x0.shape[1:]), run.states.noise == "independent"
    eps = [
        torch.from_numpy(draw_noise(run.seed, v.group.id, v.draw, i if independent else None, shape))
        for v in visits
        for i in v.group.images
    ]
    return process.noise(x0, torch.stack(eps).to(x0.dtype), t)


def inverted(
    run: Run, process: VP, epsilon: inversion.Epsilon, x0: Tensor, t: Tensor, visits: Sequence[Visit]
) -> Noised:
    """x_t by inversion; its noise term is independent per image, named by (group, draw, image, step)."""
    shape = tuple(x0.shape[1:])

    def draw(step: int) -> Tensor:
        names = [(v.group.id, v.draw, i, step) for v in visits for i in v.group.images]
        return torch.stack([torch.from_numpy(normal("inversion", run.seed, *n, shape=shape)) for n in names])

    return inversion.invert(run.states.inversion, process, epsilon, x0, t, draw)


def epsilon(
    backbone: Backbone, denoiser: nn.Module, given: Conditioning, negative: Conditioning, guidance: float
) -> inversion.Epsilon:
    """The noise that `denoiser` sees in x_t, by classifier-free guidance where `guidance` is not 1."""
    reading = dataclasses.replace(backbone.process, prediction=EPSILON)
    dtype = wrapping.dtype(denoiser)

    def predict(x_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        shown, time, seen = select(given, rows), reading.model_time(t), x_t.to(dtype)
        if guidance == 1:
            output = backbone.predict(denoiser, seen, time, shown)
        else:
            empty = {k: negative[k].to(v).expand_as(v) if k in negative else v for k, v in shown.items()}
            both = {k: torch.cat([empty[k], v]) for k, v in shown.items()}
            without, towards = backbone.predict(denoiser, torch.cat([seen, seen]), time.repeat(2), both).chunk(2)
            output = without + guidance * (towards - without)
        wide = torch.float64 if output.dtype == torch.float64 else torch.float32
        t = t.clamp(min=0)
        return reading.express(output.to(wide), Noised(x_t, x_t, t, t)).to(x_t.dtype)

    return predict


def shown(run: Run, material: Material, visits: Sequence[Visit]) -> tuple[Conditioning, list[int], Conditioning]:
    """(texts, places, sizes): what the denoiser is told, on the host.

    `texts` has a row per unique text and `places` the row of each image; `sizes` has a row per image. A dropped
    caption is dropped for its whole group, and is a last row of its own.
    """
    names = material.texts(visits)
    if run.caption_dropout:
        gone = [stream("caption", run.seed, v.group.id, v.draw).random() < run.caption_dropout for v in visits]
        drop = [g for g, v in zip(gone, visits, strict=True) for _ in v.group.images]
        names = [DROPPED if d else n for d, n in zip(drop, names, strict=True)]
    unique = sorted({n for n in names if n is not DROPPED})
    rows = material.embeddings.rows(unique) if unique else {}
    place = {name: i for i, name in enumerate(unique)}
    if any(n is DROPPED for n in names):
        rows = {k: torch.cat([rows[k], v.to(rows[k])]) if unique else v for k, v in material.negative.items()}
        place[DROPPED] = len(unique)
    return rows, [place[n] for n in names], material.sized(visits)


def conditioning(run: Run, material: Material, visits: Sequence[Visit]) -> Conditioning:
    """What the denoiser is told of each image, one row an image, on the host."""
    rows, places, sizes = shown(run, material, visits)
    return select(rows, torch.tensor(places)) | sizes
