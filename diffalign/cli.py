"""The verbs. Each is a function whose signature is its command line; nothing is imported before it is asked for.

Nor is what all verbs need: Ctrl-C while it is loaded is caught as later.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing itself is not loaded here
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

VERBS = {
    "demo": ("diffalign.demo", "the whole loop on the embedded world, in minutes, without a GPU"),
    "sample": ("diffalign.sampling", "prompts -> images"),
    "score": ("diffalign.scoring", "images -> scores"),
    "pair": ("diffalign.pairing", "scores -> preferences"),
    "judge": ("diffalign.judging", "images -> preferences, by a vision-language model behind a server"),
    "import": ("diffalign.importing", "anybody's preference data -> records, saying what was kept and why"),
    "caption": ("diffalign.captioning", "preferences -> preferences with a caption of its own for each image"),
    "inspect": ("diffalign.inspecting", "what is wrong with preference data, before it is trained on"),
    "filter": ("diffalign.filtering", "preferences -> fewer and better ones"),
    "push": ("diffalign.pushing", "preferences with their pictures -> a data set on the hub"),
    "cache": ("diffalign.training", "what training computes once, before it is trained: latents, reference errors"),
    "doctor": ("diffalign.doctor", "a recipe -> its memory, operations, time and disk on a card, before it is run"),
    "train": ("diffalign.training", "preferences -> policy"),
    "train-scorer": ("diffalign.train_scorer", "preferences -> a scorer of your own, which `score` loads"),
    "compare": ("diffalign.comparing", "scores of two models -> win rates with intervals"),
    "report": ("diffalign.report", "a run -> one HTML page and a picture"),
    "convert": ("diffalign.export", "a run or adapter -> files that diffusers, ComfyUI and A1111 load"),
}
INTERRUPTED = "interrupted; the same command goes on"


def main() -> None:
    """Run one verb."""
    carry_out(lambda: _run(sys.argv[1:]))


def script(function: Callable[..., str], program: str) -> None:
    """Run a function of a script with the words of the command line, as `main` runs a verb's."""

    def call() -> str:
        from diffalign import parsing

        return parsing.call(function, sys.argv[1:], program)()

    carry_out(call)


def carry_out(call: Callable[[], str]) -> None:
    """Print what a call says; exit 0 when it is done, 2 on a user's mistake (1 on a failed check), 130 on Ctrl-C."""
    try:
        _said(call)
    except KeyboardInterrupt:
        _fail(INTERRUPTED, 130)


def _said(call: Callable[[], str]) -> None:
    import logging

    from diffalign.records import InputError

    logging.basicConfig(format="%(message)s")
    logging.getLogger("diffalign").setLevel(logging.INFO)
    try:
        print(call(), flush=True)
    except InputError as error:
        _fail(str(error), error.status)
    except BrokenPipeError:
        if not _unread():
            raise
        # nothing is left to say, nor to flush at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if (remedy := _remedy(error)) is None:
            raise
        _fail(f"{error.filename or 'output'}: {error.strerror}; {remedy} and run the same command again", 2)


def _remedy(error: OSError) -> str | None:
    """What a user can do about it; None where nothing is known."""
    from errno import EACCES, EDQUOT, EEXIST, EFBIG, EISDIR, ELOOP, ENAMETOOLONG, ENOSPC, ENOTDIR, EPERM, EROFS

    if error.errno in (ENOSPC, EDQUOT, EFBIG):
        return "free some room"
    taken = (EACCES, EPERM, EROFS, ENOTDIR, EISDIR, EEXIST, ENAMETOOLONG, ELOOP)
    return "choose a folder that can be written" if error.errno in taken else None


def _unread() -> bool:
    """Whether whoever read what is printed has closed it, as `head` does: other pipes break too, say a tracker's."""
    import select

    asked = select.poll()
    asked.register(sys.stdout.fileno(), 0)
    return bool(asked.poll(0))


def _fail(message: str, status: int) -> None:
    print(f"diffalign: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _run(words: Sequence[str]) -> str:
    from diffalign import __version__
    from diffalign.records import InputError

    if not words or words[0] in ("-h", "--help"):
        lines = "\n".join(f"  {verb:<12} {what}" for verb, (_, what) in VERBS.items())
        return f"usage: diffalign VERB … (diffalign VERB --help says more)\n\n{lines}"
    if words[0] == "--version":
        return __version__
    verb, rest = words[0], list(words[1:])
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, 1)
        raise InputError(f"no verb {verb!r}{f', did you mean {near[0]!r}?' if near else ''} ({', '.join(VERBS)})")
    if verb in ("train", "cache", "doctor"):
        return _recipe(verb, rest)
    import importlib
    import keyword

    from diffalign import parsing

    name = f"{verb}_" if keyword.iskeyword(verb) else verb.replace("-", "_")
    function = vars(importlib.import_module(VERBS[verb][0]))[name]
    return parsing.call(function, rest, f"diffalign {verb}")()


def _recipe(verb: str, words: list[str]) -> str:
    """`train RECIPE [--field value …]`: the recipe's run, its values overlaid by typed flags of its own classes."""
    from diffalign.records import InputError

    card = " [--card h200]" if verb == "doctor" else ""
    usage = f"usage: diffalign {verb} RECIPE{card} [--data DIR] [--out DIR] [--objective.beta 2000 …]"
    if words and words[0] in ("-h", "--help"):
        return f"{usage}\n\n{VERBS[verb][1]}; `diffalign {verb} RECIPE --help` lists the recipe's own flags"
    if not words or words[0].startswith("-"):
        raise InputError(usage)
    import dataclasses

    from diffalign import parsing
    from diffalign.recipes import load_recipe
    from diffalign.run import Run

    recipe = load_recipe(words[0])
    default = dataclasses.replace(recipe.run, out=recipe.run.out or f"runs/{recipe.path.stem}")
    program = f"diffalign {verb} {words[0]}"
    if verb == "doctor":
        from diffalign.doctor import Consultation, doctor

        return doctor(parsing.parse(Consultation, words[1:], program, Consultation(default)), name=recipe.path.stem)
    from diffalign.training import Training, cache, train

    if verb == "cache":
        return cache(parsing.parse(Run, words[1:], program, default))
    asked = parsing.parse(Training, words[1:], program, Training(default))
    return train(asked.run, recipe={"name": recipe.path.name, "sha256": recipe.sha256}, resume=asked.resume)
