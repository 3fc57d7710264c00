"""An accelerator by the clock: pairs a second, share of its matmul rate, peak memory, what caches cost and save.

    python scripts/bench_device.py                  every model, on CUDA
    python scripts/bench_device.py --device cpu     the same code on small models, to see that it runs; says nothing

Real configurations with random weights, 1024 pixels (Stable Diffusion 1.5: 512), bfloat16, a full bank and cached
latents unless a line says otherwise. The step is `Trainer`'s own with its optimizer, `--parts` micro-batches of
`--pairs` each; the table gives the median over `--steps` steps after three that do not count, with their range.
`share` is of the matmul rate that the card reaches on 8192 x 8192 matrices, by the operations that the library's step
needs (`bench_counters.py`); `host` is how long the processor took to launch a step, of the step's time: near 1, the
card waits. `estimate` is what `diffalign doctor` says of the same step. On SDXL the stand-ins of three scripts follow
(`bench_steps.py`), and the library's lines are measured once more after them.
"""

import argparse
import dataclasses
import datetime
import gc
import importlib.metadata
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_steps import DIFFUSERS, MAPO, SALESFORCE, Ours, Theirs, World, default
from torch import Tensor

from diffalign import accelerators, attention, compiling, counting, needs
from diffalign.backbones.base import residuals
from diffalign.objectives import DPO
from diffalign.run import Adaptation, Evaluate, Full, LoRA, Run

GIB, TERA, WARM = 2**30, 1e12, 3
HUB = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
    "flux": "black-forest-labs/FLUX.1-dev",
}
RESOLUTION = {"sdxl": 1024, "sd15": 512, "sd3": 1024, "flux": 1024}
# what of them is trained; FLUX's weights with AdamW's moments do not fit one card
KINDS: dict[str, tuple[Adaptation, ...]] = {
    "sdxl": (Full(), LoRA(rank=64, alpha=64.0)), "sd15": (Full(), LoRA(rank=64, alpha=64.0)),
    "sd3": (LoRA(rank=64, alpha=64.0),), "flux": (LoRA(rank=64, alpha=64.0),),
}  # fmt: skip
# pairs a second on an H200, and how many times the script's step
BOUNDS = {("sdxl", "full"): (6.5, 5.0), ("sdxl", "LoRA"): (9.0, 3.0)}


@dataclass(frozen=True)
class Bench:
    """Where and how much is measured."""

    device: torch.device
    pairs: int
    parts: int
    steps: int
    place: Path
    compile: bool

    @property
    def real(self) -> bool:
        """Whether this is an accelerator, and the models are the published ones."""
        return self.device.type == "cuda"

    def world(self, name: str) -> World:
        """A model: the published one, or on the CPU a small one of its family."""
        if self.real:
            return World(HUB[name], RESOLUTION[name], self.device)
        folder = self.place / name
        if not folder.exists():
            sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
            import tiny

            tiny.save({"sd15": "sd"}.get(name, name), folder)
        return World(str(folder), 32, self.device)

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.real:
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Times:
    """Seconds of a step: median, least and most; the share in which the host was busy; peak bytes (None: no card)."""

    middle: float
    low: float
    high: float
    host: float
    peak: int | None


def timed(bench: Bench, call: Callable[[], object], steps: int | None = None) -> Times:
    """`call` again and again; on a card each step is timed by its own events, and waited for only at the end."""
    for _ in range(WARM):
        call()
    bench.wait()
    count = steps or bench.steps
    if not bench.real:
        found = [_seconds(call) for _ in range(count)]
        return Times(statistics.median(found), min(found), max(found), 1.0, None)
    torch.cuda.reset_peak_memory_stats(bench.device)
    events, start = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)], time.perf_counter()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    host = time.perf_counter() - start
    bench.wait()
    found = [a.elapsed_time(b) / 1000 for a, b in zip(events, events[1:], strict=False)]
    peak = torch.cuda.max_memory_allocated(bench.device)
    return Times(statistics.median(found), min(found), max(found), min(1.0, host / sum(found)), peak)


def _seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def ceilings(bench: Bench) -> tuple[float, float]:
    """(operations, bytes) a second that the device reaches: a product of matrices in bfloat16, a copy."""
    size = 8192 if bench.real else 256
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    one, other = (torch.randn(4096 * size, device=bench.device) for _ in range(2))
    return 2 * size**3 / timed(bench, lambda: a @ b).middle, 2 * one.nbytes / timed(
        bench, lambda: other.copy_(one)
    ).middle


def run_of(bench: Bench, policy: Adaptation) -> Run:
    """The run whose step is taken."""
    kernel = attention.resolved("auto", "bfloat16")
    made = default(DPO(beta=5000.0), policy, bench.pairs, bench.parts, precision="bfloat16", attention=kernel)
    return dataclasses.replace(made, gradient_checkpointing="off", evaluate=Evaluate(preview_every=0))


def ours(bench: Bench, world: World, policy: Adaptation, ask: Callable[[Ours], Any], *, bank: bool = True) -> Any:
    """What the library's step is asked; its network has left the device when the answer is there."""
    made = Ours(world, run_of(bench, policy), torch.bfloat16, bank=bank)
    if bench.compile:
        compiling.compile_blocks(made.policy.denoiser)
    found = ask(made)
    del made
    swept()
    return found


def swept() -> None:
    """Give back what nobody holds."""
    gc.collect()
    torch.cuda.empty_cache()


def estimate(bench: Bench, world: World, policy: Adaptation) -> tuple[float, float]:
    """(operations of a pair's gradient, bytes at the peak) by `diffalign doctor`, of a run whose bank is filled."""
    told = dataclasses.replace(run_of(bench, policy), model=world.model, resolution=world.resolution, bank="on")
    found = needs.needs(told, "h200")
    size = accelerators.CARDS["h200"].memory * GIB
    return found.flops["policy forward and backward"], found.fixed + needs.asked(told, found, size).activations


def counted(made: Ours) -> int:
    """Peak bytes of a step where no card tells them: what lies there before it, and what its operations make."""
    known = [*made.policy.denoiser.parameters(), *made.policy.masters.values()]
    states = made.trainer.optimizer.state.values()
    known += [v for state in states for v in state.values() if isinstance(v, Tensor)]
    with counting.Counter() as counter:
        counter.known(*known)
        made()
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in known)}.values()) + counter.peak


def line(what: str, pairs: int, found: Times, *more: str) -> None:
    """One line of the table."""
    middle, low, high = (pairs / s for s in (found.middle, found.high, found.low))
    print(f"{what:<40} {middle:8.3g} [{low:.3g}, {high:.3g}] {' '.join(more)}", flush=True)


def model(bench: Bench, name: str, rate: float) -> None:
    """The library's lines of a model."""

    def ask(made: Ours) -> tuple[Times, int]:
        found = timed(bench, made)
        return found, counted(made) if found.peak is None else found.peak

    for policy in KINDS[name]:
        kind, world = "full" if isinstance(policy, Full) else "LoRA", bench.world(name)
        flops, bytes_ = estimate(bench, world, policy)
        (found, peak), size = ours(bench, world, policy, ask), bench.pairs * bench.parts
        reached = size / found.middle * flops
        bound, _ = BOUNDS.get((name, kind), (0.0, 0.0))
        line(
            f"{name} {kind}", size, found, f"{reached / TERA:.3g} TFLOP/s, share {reached / rate:.1%},",
            f"host {found.host:.0%}, peak {peak / GIB:.3g} GiB, estimate {bytes_ / GIB:.3g} ({bytes_ / peak - 1:+.0%})",
            f"(must be >= {bound:g})" if bound and bench.real else "",
        )  # fmt: skip


def caches(bench: Bench) -> None:
    """What it costs SDXL to fill its caches, and after how many visits of a pair that is won."""
    world, policy, size = bench.world("sdxl"), KINDS["sdxl"][0], bench.pairs * bench.parts

    def ask(made: Ours) -> tuple[float, float]:
        passes, visits = made.trainer.passes, made.rows.visits(0, 0, bench.pairs)[: bench.pairs]
        told = passes.conditioning(visits)
        noised = passes.noised(visits, told)

        @torch.no_grad()
        def refer() -> None:
            residuals(passes.backbone, passes.denoiser, noised, told)

        return timed(bench, made).middle / size, timed(bench, refer).middle / bench.pairs

    cached, bank = ours(bench, world, policy, ask)
    live = ours(bench, world, policy, lambda made: timed(bench, made).middle / size, bank=False)
    theirs = Theirs(world, MAPO, bench.pairs, torch.bfloat16)
    encoding = timed(bench, theirs.shown).middle / bench.pairs
    del theirs
    swept()
    print(f"seconds a pair, SDXL full: step {cached:.4g}, with a live reference {live:.4g}, encoding {encoding:.4g}")
    gain = bank / max(live - cached, 1e-9)
    print(f"bank: {bank:.4g} s a pair and draw to fill, won back after {gain:.2f} visits; latents and texts after one")


def scripts(bench: Bench) -> None:
    """The scripts' steps on SDXL beside the library's, before and after them."""
    world, size = bench.world("sdxl"), bench.pairs * bench.parts
    full, lora = KINDS["sdxl"]
    for script in (SALESFORCE, DIFFUSERS, MAPO):
        policy, pairs = lora if script.rank else full, script.pairs if bench.real else min(2, script.pairs)

        def mine(policy: Adaptation = policy) -> float:
            return size / ours(bench, world, policy, lambda made: timed(bench, made).middle)

        before, theirs = mine(), Theirs(world, script, pairs, torch.bfloat16)
        found = timed(bench, theirs)
        del theirs
        swept()
        after = mine()
        times = 0.5 * (before + after) * found.middle / pairs
        bound = 0.0 if script is MAPO else BOUNDS["sdxl", "LoRA" if script.rank else "full"][1]
        must = f" (must be >= {bound:g})" if bound and bench.real else ""
        peak = f"peak {found.peak / GIB:.3g} GiB, " if found.peak is not None else ""
        said = f"{peak}ours {before:.3g}, {after:.3g}: {times:.3g} times{must}"
        line(f"{script.name}, {pairs} a micro-step", pairs, found, said)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=list(HUB), choices=list(HUB))
    parser.add_argument("--pairs", type=int, default=4, help="of a forward pass")
    parser.add_argument("--parts", type=int, default=4, help="forward passes of an optimizer step")
    parser.add_argument("--steps", type=int, default=20, help="that count")
    parser.add_argument("--compile", action="store_true", help="compile the blocks that repeat")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here; --device cpu runs the same code on small models, which says nothing of speed")
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(device, asked.pairs, asked.parts, asked.steps, Path(place), asked.compile)
        name = torch.cuda.get_device_name(device) if bench.real else "CPU, SMALL MODELS, NOT RUN ON AN ACCELERATOR"
        versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("torch", "diffusers", "peft"))
        date, size = datetime.datetime.now(datetime.UTC).date(), f"{asked.parts} x {asked.pairs} pairs a step"
        print(f"{date}, {name}, {versions}; {size}")
        rate, bandwidth = ceilings(bench)
        print(f"reached: {rate / TERA:.4g} TFLOP/s in bfloat16, {bandwidth / 1e12:.3g} TB/s")
        print(f"{'':<40} pairs/s [range]", flush=True)
        for model_ in asked.models:
            model(bench, model_, rate)
        if "sdxl" in asked.models:
            caches(bench)
            scripts(bench)


if __name__ == "__main__":
    main()
