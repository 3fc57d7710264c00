"""Kill -9 at random points, run the same commands again, and compare what is left, bit for bit.

    python scripts/crash.py [--points 50] [--seed 0]

A run on a tiny random model (caches, training, evaluation, bank where there is one) is made once undisturbed. Then
it is killed at `points` points, several in each of a few folders, and run to its end: policy, checkpoints, metrics and
evaluations must be those of the undisturbed run, bit for bit. Every other point is a file operation, before which the
process kills itself; the others are moments of time. Prints a line a folder, and exits 1 where one differs.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests"), os.environ.get("PYTHONPATH", "")]
)

import commands  # noqa: E402

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
RECIPE = """
from diffalign.objectives import DPO
from diffalign.run import AdamW, EMA, Evaluate, LoRA, Run

run = Run(
    model={model!r}, objective=DPO(beta=2000.0), policy=LoRA(rank=2, alpha=4.0), data={data!r}, steps=8, batch=3,
    resolution=32, optimizer=AdamW(lr=3e-3), save_every=2, log_every=1, out="run", {more}
    evaluate=Evaluate(
        prompts={prompts!r}, scorers=({scorer!r},), every=3, preview_every=4, previews=2, steps=1, batch=4,
    ),
)
"""
SCORER = "import numpy\n\n\ndef bright(images, prompts):\n    return numpy.array([numpy.mean(i) for i in images])\n"
# the reference that stays has a bank, the one that moves lies in the checkpoints
KINDS = {"frozen": "", "moving": "reference=EMA(decay=0.5, every=2),"}


def prepare(place: Path, model: Path, pairs: Path, kind: str) -> Path:
    """A folder with a recipe and what it reads, to run the commands in."""
    place.mkdir(parents=True)
    (place / "judge.py").write_text(SCORER)
    (place / "prompts.txt").write_text("a red circle\na blue square\na green star\n")
    told = {"prompts": "prompts.txt", "scorer": "judge.py:bright", "more": KINDS[kind]}
    (place / "recipe.py").write_text(RECIPE.format(model=str(model), data=str(pairs), **told))
    return place


def mortal(words: list[str], cwd: Path, at: int | None) -> None:
    """`diffalign WORDS`, killed before its file operation number `at` below `cwd`; counts them into `cwd`/.events."""
    seen, below = [0], str(cwd)

    def count(event: str, arguments: tuple[object, ...]) -> None:
        if event not in EVENTS or not arguments or not isinstance(arguments[0], str | os.PathLike):
            return
        if str(Path(os.fspath(arguments[0])).absolute()).startswith(below):
            seen[0] += 1
            if seen[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)

    os.chdir(cwd)
    sys.addaudithook(count)
    try:
        commands._main(words, cwd, cwd / ".out", cwd / ".err", None)
    finally:
        os.write(os.open(cwd / ".events", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), str(seen[0]).encode())


def run(place: Path, words: list[str], at: int | None = None, after: float | None = None) -> int:
    """Run a command to its end or its death; its exit code (-9: it was killed)."""
    process = commands._CONTEXT.Process(target=mortal, args=(words, place, at))
    process.start()
    process.join(after)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


def phase(place: Path) -> str:
    """How far the run in a folder had come."""
    out = place / "run"
    if (out / "policy").exists():
        return "finished"
    if any(out.glob("checkpoint-*")) or (out / "metrics.jsonl").exists():
        return "train"
    if any(out.glob("**/bank*")):
        return "prefill"
    return "cache" if (out / "cache").exists() or not (out / "run.json").exists() else "start"


def finished(place: Path, words: list[str]) -> dict[str, bytes]:
    """Run a command to its end; what the run is, as bytes, without what says when and where it was made."""
    code = run(place, words)
    if code:
        raise SystemExit(f"{place}: ended with {code}: {(place / '.err').read_text()}")
    return commands.contents(place / "run", without=("tensorboard", "cache", "run.json"))


Kills = list[tuple[str, float]]


def trial(whole: dict[str, bytes], place: Path, words: list[str], kills: Kills) -> tuple[bool, list[str]]:
    """Kill a run at these points ("event", number) or ("time", seconds), end it; (whether it is the whole, phases)."""
    phases = []
    for kind, value in kills:
        code = run(place, words, at=int(value)) if kind == "event" else run(place, words, after=value)
        phases.append(phase(place) if code == -signal.SIGKILL else "not hit")
    return finished(place, words) == whole, phases


def crash(place: Path, model: Path, pairs: Path, points: int, chain: int, seed: int) -> tuple[int, Counter[str]]:
    """Kill at so many points, `chain` in a folder; (how many folders differ, points by phase). Prints a line each."""
    words, drawn = ["train", "recipe.py"], random.Random(seed)
    whole, size = {}, {}
    for kind in KINDS:
        first = prepare(place / f"whole-{kind}", model, pairs, kind)
        start = time.monotonic()
        whole[kind] = finished(first, words)
        size[kind] = (int((first / ".events").read_text()), time.monotonic() - start)
    differ, phases = 0, Counter[str]()
    for number in range(0, points, chain):
        kind = list(KINDS)[number // chain % len(KINDS)]
        events, seconds = size[kind]
        kills = [
            ("event", drawn.randrange(1, events)) if (number + i) % 2 else ("time", drawn.uniform(0, seconds))
            for i in range(min(chain, points - number))
        ]
        same, seen = trial(whole[kind], prepare(place / f"killed-{number}", model, pairs, kind), words, kills)
        differ += not same
        phases.update(seen)
        said = ", ".join(f"{how} {value:.4g} ({at})" for (how, value), at in zip(kills, seen, strict=True))
        print(f"{kind} reference, killed at {said}: {'the same bytes' if same else 'DIFFERS'}", flush=True)
    return differ, phases


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=50, help="how often to kill")
    parser.add_argument("--chain", type=int, default=5, help="how often in one folder before it is run to its end")
    parser.add_argument("--seed", type=int, default=0, help="names the points")
    asked = parser.parse_args()
    import tiny
    import worlds

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model, pairs = tiny.save("sdxl", place / "model"), worlds.pairs(place / "pairs")
        differ, phases = crash(place, model, pairs, asked.points, asked.chain, asked.seed)
    hit = asked.points - phases["not hit"] - phases["finished"]
    seen = ", ".join(f"{count} {name}" for name, count in sorted(phases.items()))
    print(f"{asked.points} points, {hit} before the end ({seen}):", end=" ")
    print(f"{differ} folders differ" if differ else "every folder ends in the bytes of the undisturbed run")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
