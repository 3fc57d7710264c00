"""Kill -9 at random points, run the same commands again, and compare what is left, bit for bit.

    python scripts/crash.py [--points 50] [--seed 0]

Runs on a tiny random model (caches, reference errors, training, evaluation) are made once undisturbed. Then they are
killed at `points` points, several in each of a few folders, and run to its end: policy, checkpoints, metrics and
evaluations must be those of the undisturbed run, bit for bit. Every other point is a file operation, before which the
process kills itself; at the others it is killed up to 50 ms later. Prints a line a folder; exits 1 where
one differs.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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
# what is added to the recipe, and the commands; the reference that moves lies in the checkpoints
KINDS = {
    "live reference": ('bank="off",', ("train",)),
    "moving reference": ("reference=EMA(decay=0.5, every=2),", ("train",)),
    "bank filled on the way": ('bank="on",', ("train",)),
    "bank filled before": ('bank="on", draws=2,', ("cache", "train")),
}


def prepare(place: Path, model: Path, pairs: Path, kind: str) -> Path:
    """A folder with a recipe and what it reads, to run the commands in."""
    place.mkdir(parents=True)
    (place / "judge.py").write_text(SCORER)
    (place / "prompts.txt").write_text("a red circle\na blue square\na green star\n")
    told = {"prompts": "prompts.txt", "scorer": "judge.py:bright", "more": KINDS[kind][0]}
    (place / "recipe.py").write_text(RECIPE.format(model=str(model), data=str(pairs), **told))
    return place


def mortal(words: list[str], cwd: Path, at: int | None, delay: float) -> None:
    """`diffalign WORDS`, killed `delay` seconds after it came to its file operation number `at` below `cwd`, or before
    that operation where it is 0; how many there were is written into `cwd`/.events.
    """
    seen, below = [0], str(cwd)

    def count(event: str, arguments: tuple[object, ...]) -> None:
        if event not in EVENTS or not arguments or not isinstance(arguments[0], str | os.PathLike):
            return
        if str(Path(os.fspath(arguments[0])).absolute()).startswith(below):
            seen[0] += 1
            if seen[0] == at:
                killed(delay)

    os.chdir(cwd)
    sys.addaudithook(count)
    try:
        commands._main(words, cwd, cwd / ".out", cwd / ".err", None, {})
    finally:
        os.write(os.open(cwd / ".events", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), str(seen[0]).encode())


def killed(delay: float) -> None:
    """Be killed, now or by a process that waits so many seconds."""
    me = os.getpid()
    if delay == 0:
        os.kill(me, signal.SIGKILL)
    elif os.fork() == 0:
        time.sleep(delay)
        if os.getppid() == me:
            os.kill(me, signal.SIGKILL)
        os._exit(0)


def run(place: Path, words: list[str], at: int | None = None, delay: float = 0.0) -> int:
    """Run a command to its end or its death; its exit code (-9: it was killed)."""
    process = commands._CONTEXT.Process(target=mortal, args=(words, place, at, delay))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def phase(place: Path, verb: str) -> str:
    """How far the run in a folder had come when `verb` was killed."""
    out = place / "run"
    if (out / "policy").exists():
        return "finished"
    if (out / "metrics.jsonl").exists() or any(out.glob("checkpoint-*")):
        return "train"
    return "prefill" if any((out / "cache").glob("reference-*")) and verb == "cache" else "cache"


def finished(place: Path, verbs: Sequence[str]) -> dict[str, bytes]:
    """Run the commands to their end; what the run is, as bytes, without what says when and where it was made."""
    for verb in verbs:
        code = run(place, [verb, "recipe.py"])
        if code:
            raise SystemExit(f"{place}: {verb} ended with {code}: {(place / '.err').read_text()}")
    return commands.contents(place / "run", without=("tensorboard", "cache", "run.json"))


@dataclass(frozen=True)
class Kill:
    """Where to kill: in which command, how many seconds after which file operation; 0: before it."""

    verb: int
    event: int
    delay: float


def trial(
    whole: dict[str, bytes], place: Path, verbs: Sequence[str], kills: Sequence[Kill]
) -> tuple[list[str], list[str]]:
    """Kill a run at these points, then end it; (the files that differ, how far it was at each)."""
    phases = []
    for kill in kills:
        for verb in verbs[: kill.verb]:
            run(place, [verb, "recipe.py"])
        code = run(place, [verbs[kill.verb], "recipe.py"], kill.event, kill.delay)
        phases.append(phase(place, verbs[kill.verb]) if code == -signal.SIGKILL else "not hit")
    found = finished(place, verbs)
    return sorted(n for n in found.keys() | whole.keys() if found.get(n) != whole.get(n)), phases


def crash(place: Path, model: Path, pairs: Path, points: int, chain: int, seed: int) -> tuple[int, Counter[str]]:
    """Kill at so many points, `chain` in a folder; (how many folders differ, points by phase). Prints a line each."""
    drawn, whole, size = random.Random(seed), {}, {}
    for kind, (_, verbs) in KINDS.items():
        first = prepare(place / f"whole {kind}", model, pairs, kind)
        for verb in verbs:
            run(first, [verb, "recipe.py"])
            size[kind, verb] = int((first / ".events").read_text())
        whole[kind] = finished(first, verbs)
    differ, phases = 0, Counter[str]()
    number = 0
    while sum(phases.values()) - phases["not hit"] < points:
        kind = list(KINDS)[number % len(KINDS)]
        verbs, kills = KINDS[kind][1], []
        for i in range(chain):
            verb = drawn.randrange(len(verbs))
            delay = drawn.uniform(0, 0.05) if (number + i) % 2 else 0.0
            kills.append(Kill(verb, drawn.randrange(1, size[kind, verbs[verb]]), delay))
        other, seen = trial(whole[kind], prepare(place / f"killed {number}", model, pairs, kind), verbs, kills)
        differ, number = differ + bool(other), number + 1
        phases.update(seen)
        told = f"DIFFERS in {', '.join(other)}" if other else "the same bytes"
        print(f"{kind}, killed in {', '.join(seen)}: {told}", flush=True)
    return differ, phases


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=50, help="how often to kill")
    parser.add_argument("--chain", type=int, default=2, help="how often in one folder before it is run to its end")
    parser.add_argument("--seed", type=int, default=0, help="names the points")
    asked = parser.parse_args()
    import tiny
    import worlds

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model, pairs = tiny.save("sdxl", place / "model"), worlds.pairs(place / "pairs")
        differ, phases = crash(place, model, pairs, asked.points, asked.chain, asked.seed)
    hit = {name: count for name, count in sorted(phases.items()) if name != "not hit"}
    print(f"{sum(hit.values())} kills ({', '.join(f'{n} in {p}' for p, n in hit.items())}):", end=" ")
    print(f"{differ} folders differ" if differ else "every folder ends in the bytes of the undisturbed run")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
