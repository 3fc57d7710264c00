"""The whole loop on the embedded world: draw, judge, pair, train, compare, report; only files on disk between them."""

import json
import logging
import platform
import resource
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from diffalign import entries, folders
from diffalign.comparing import compare
from diffalign.manifest import clear, is_temporary
from diffalign.pairing import pair
from diffalign.recipes import Recipe, load_recipe
from diffalign.records import InputError
from diffalign.report import report
from diffalign.sampling import sample
from diffalign.scoring import score
from diffalign.shapes import captions
from diffalign.training import train

PROXY = "shapes_clip"
JUDGES = ("gold", "gold_right", PROXY)
RECIPES = {"sdxl": "shapes_dpo", "sd3": "shapes_sd3_dpo"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizes:
    """How large a demonstration is: prompts and images behind the pairs, prompts and noises of the test.

    0 means the recipe's own number: of training steps, and of the sampler's steps by which it is evaluated.
    """

    train_prompts: int = 512
    per_prompt: int = 4
    train_steps: int = 0
    test_prompts: int = 256
    test_noises: int = 1
    batch: int = 32
    steps: int = 0


@dataclass(frozen=True)
class Stage:
    """One step of the demonstration: what it does in words, the call, and the command that does the same."""

    title: str
    call: partial[str]
    command: str


def demo(*, out: Path = Path("diffalign-demo"), seed: int = 0, backbone: Literal["sdxl", "sd3"] = "sdxl") -> str:
    """Align the embedded world's model with preferences and measure what changed; the same command again goes on.

    Writes into OUT, which is also a run folder: `result.json` (the numbers), `report.html` and `report.png`, `policy/`,
    `commands.sh` (the same loop as single commands), and the record folders of every stage.

    Args:
        out: Folder to write.
        seed: Names the noise of all pictures and of training.
        backbone: Which embedded model: sdxl, a UNet that predicts noise, or sd3, a DiT with rectified flow.
    """
    found = run_demo(out, seed, backbone, Sizes())
    return f"{out / 'report.html'}: {in_words(found)}; next: open {out / 'report.html'} in a browser"


def run_demo(out: Path, seed: int, backbone: str, sizes: Sizes) -> dict[str, Any]:
    """The demonstration at any size; returns what it writes to OUT/result.json.

    gold_*: share of pictures with all demanded attributes right, before, after and their difference; win_rate: by the
    gold score, ties counted half; low and high: ends of 95 % intervals, resampled by prompt. seconds: wall time of the
    stages, each as long as it took when it was first finished. peak_rss_mib: the most memory the process held.
    """
    asked = {"backbone": backbone, "seed": seed, "sizes": asdict(sizes)}
    state = _found(out, asked)
    path = out / "result.json"
    if path.is_file() and (out / "report.html").is_file():
        return _finished(path)
    todo = plan(out, seed, backbone, sizes)
    clear(path, *(out / name for name in ("demo.json", "commands.sh", "prompts/train.txt", "prompts/test.txt")))
    _write_json(out / "demo.json", state)
    _write_prompts(out, sizes)
    commands = "".join(f"{stage.command}\n" for stage in todo)
    folders.write_atomically(out / "commands.sh", f"#!/bin/sh\nset -e\n{commands}".encode())
    for number, stage in enumerate(todo, 1):
        log.info("%d/%d %s", number, len(todo), stage.title)
        started = time.perf_counter()
        stage.call()
        seconds = round(time.perf_counter() - started, 2)
        state["stages"].setdefault(stage.title, {"seconds": seconds, "peak_rss_mib": _peak_mib()})
        _write_json(out / "demo.json", state)
    found = result(out, state)
    _write_json(path, found)
    return found


def _found(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What `demo.json` says of the stages done; raises InputError where OUT holds anything but this demonstration."""
    path = out / "demo.json"
    if path.is_file():
        try:
            state = json.loads(path.read_text())
            changed = [f"{k} = {state[k]!r}, not {v!r}" for k, v in asked.items() if state[k] != v]
            for done in dict(state["stages"]).values():
                float(done["seconds"]), float(done["peak_rss_mib"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is damaged ({type(error).__name__}: {error}); choose another --out") from None
        if changed:
            raise InputError(f"{out}: holds a demonstration with {'; '.join(changed)}; choose another --out")
        return state
    if out.exists() and (not out.is_dir() or any(not is_temporary(entry) for entry in out.iterdir())):
        raise InputError(f"{out}: is not empty and holds no demonstration; choose another --out")
    return {**asked, "stages": {}}


def _finished(path: Path) -> dict[str, Any]:
    """`result.json` of a finished demonstration; raises InputError where it does not hold what is said of one."""
    try:
        found = entries.whole(path)
        in_words(found)
    except (InputError, KeyError, TypeError, ValueError) as error:
        said = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{path}: is damaged ({said}); delete it, and the same command writes it again") from None
    return found


def _write_json(path: Path, data: dict[str, Any]) -> None:
    folders.write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())


def _write_prompts(out: Path, sizes: Sizes) -> None:
    for split, count in (("train", sizes.train_prompts), ("test", sizes.test_prompts)):
        text = "".join(f"{line}\n" for line in captions.prompts(split, count))
        folders.write_atomically(out / "prompts" / f"{split}.txt", text.encode())


def plan(out: Path, seed: int, backbone: str, sizes: Sizes) -> list[Stage]:
    """The stages in order. Each reads what the ones before it left on disk; nothing else passes between them."""
    recipe = load_recipe(RECIPES[backbone])
    known = recipe.run.evaluate
    sampler = {"steps": sizes.steps or known.steps, "guidance": known.guidance}
    draw = partial(sample, model=recipe.run.model, seed=seed, batch=sizes.batch, **sampler)
    on_test = {"prompts": out / "prompts" / "test.txt", "per_prompt": sizes.test_noises}
    learn, test = out / "train", out / "test"
    judged = {name: test / f"{name}-scores" for name in ("base", "policy")}
    on_train = {"prompts": out / "prompts" / "train.txt", "per_prompt": sizes.per_prompt}
    many = f"draw {sizes.per_prompt} pictures for each of {sizes.train_prompts} training prompts"
    return [
        _stage(many, partial(draw, **on_train, out=learn / "images")),
        _stage("judge them by the CLIP proxy", partial(score, learn / "images", scorer=(PROXY,), out=learn / "scores")),
        _stage("pair best with worst", partial(pair, learn / "scores", rule="best_vs_worst", out=learn / "pairs")),
        _train(out, seed, RECIPES[backbone], recipe, sizes),
        _stage(f"draw {sizes.test_prompts} test prompts with the base", partial(draw, **on_test, out=test / "base")),
        _stage("draw them with the policy", partial(draw, lora=(str(out / "policy"),), **on_test, out=test / "policy")),
        _stage("judge the base's pictures", partial(score, test / "base", scorer=JUDGES, out=judged["base"])),
        _stage("judge the policy's pictures", partial(score, test / "policy", scorer=JUDGES, out=judged["policy"])),
        _stage("compare them", partial(compare, judged["base"], judged["policy"], out=out / "compare")),
        _stage("make a page of it", partial(report, out, out=out / "report.html")),
    ]  # fmt: skip


def _stage(title: str, call: partial[str]) -> Stage:
    return Stage(title, call, command(call.func.__name__, call.args, call.keywords))


def _train(out: Path, seed: int, name: str, recipe: Recipe, sizes: Sizes) -> Stage:
    steps = sizes.train_steps or recipe.run.steps
    changed = {"data": str(out / "train" / "pairs"), "out": str(out), "seed": seed}
    changed |= {"steps": steps} if sizes.train_steps else {}
    call = partial(train, replace(recipe.run, **changed), recipe={"name": recipe.path.name, "sha256": recipe.sha256})
    return Stage(f"train on the pairs, {steps} steps", call, command("train", (name,), changed))


def command(verb: str, positional: tuple[Any, ...], flags: dict[str, Any]) -> str:
    """The command line of a stage's call."""
    words = ["diffalign", verb, *map(str, positional)]
    for name, value in flags.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def _peak_mib() -> float:
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def result(out: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The table as data: what OUT/compare/compare.json and the finished stages say."""
    scorers = json.loads((out / "compare" / "compare.json").read_text())["scorers"]
    right, whole, proxy = (scorers[name] for name in ("gold_right", "gold", PROXY))
    stages = state["stages"]
    return {
        "gold_base": right["mean_a"],
        "gold_policy": right["mean_b"],
        **{f"gold_{name}": right[name] for name in ("delta", "delta_low", "delta_high")},
        **{name: whole[name] for name in ("win_rate", "win_rate_low", "win_rate_high")},
        **{f"proxy_{name}": proxy[name] for name in ("win_rate", "win_rate_low", "win_rate_high")},
        "seconds": round(sum(s["seconds"] for s in stages.values()), 1),
        "peak_rss_mib": max(s["peak_rss_mib"] for s in stages.values()),
        **{name: state[name] for name in ("backbone", "seed", "sizes")},
        "stages": {title: s["seconds"] for title, s in stages.items()},
        "versions": folders.versions() | {"python": platform.python_version()},
    }


def in_words(found: dict[str, Any]) -> str:
    """A result in one sentence."""
    return (
        f"all attributes right {found['gold_base']:.1%} -> {found['gold_policy']:.1%} "
        f"({100 * found['gold_delta']:+.1f} points, 95% interval {100 * found['gold_delta_low']:+.1f} to "
        f"{100 * found['gold_delta_high']:+.1f}); the policy wins {found['win_rate']:.1%} by the gold score "
        f"(interval {found['win_rate_low']:.1%} to {found['win_rate_high']:.1%}); "
        f"{found['seconds']:.0f} s, {found['peak_rss_mib']:.0f} MiB"
    )
