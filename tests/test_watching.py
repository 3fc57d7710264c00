"""What a user sees while a run trains: evaluations, previews, the best checkpoint, alarms, and a stop that saves."""

import dataclasses
import io
import json
import logging
import os
import signal
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.utils import LoggerType

from diffalign import alarms, evaluating, journal, progress, tracking, training, watching
from diffalign.objectives import DPO
from diffalign.records import InputError
from diffalign.run import AdamW, Evaluate, LoRA, Run
from diffalign.trainer import Trainer
from diffalign.training import Stopped, train

SCORER = """
import numpy

def brightness(images, prompts):
    return numpy.array([numpy.asarray(i).mean() for i in images])

def darkness(images, prompts):
    return -brightness(images, prompts)
"""
TEXTS = ("a red circle", "a blue square", "a green star", "a small square")


@pytest.fixture(scope="module")
def watched(models: dict[str, Path], pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A finished run that was evaluated every two of six steps and shown every three, and its last line."""
    place = tmp_path_factory.mktemp("watched")
    (place / "judge.py").write_text(SCORER)
    (place / "prompts.txt").write_text("".join(f"{t}\n" for t in TEXTS))
    judges = tuple(f"{place / 'judge.py'}:{n}" for n in ("brightness", "darkness"))
    run = Run(
        model=str(models["sdxl"]), objective=DPO(beta=2000.0), policy=LoRA(rank=2, alpha=4.0), data=str(pairs),
        out=str(place / "run"), steps=6, batch=3, resolution=32, optimizer=AdamW(lr=3e-2), save_every=4, log_every=1,
        keep=1, evaluate=Evaluate(
            prompts=str(place / "prompts.txt"), scorers=judges, every=2, best="judge.py:darkness", preview_every=3,
            previews=2, noises=2, steps=2, batch=3,
        ),
    )  # fmt: skip
    return run, train(run)


def rows(run: Run) -> list[dict[str, object]]:
    return journal.rows(Path(run.out) / "evaluations.jsonl")


def test_evaluations_are_of_the_same_pictures_beside_the_base(watched: tuple[Run, str]) -> None:
    run, _ = watched
    assert [(r["step"], r["pictures"]) for r in rows(run)] == [(2, 8), (3, 2), (4, 8), (6, 8)]
    scored = [r["scorers"] for r in rows(run) if "scorers" in r]
    assert len(scored) == 3
    for found in scored:
        bright, dark = found["judge.py:brightness"], found["judge.py:darkness"]
        assert bright["win_rate"] == pytest.approx(1 - dark["win_rate"])
        assert bright["mean"] == -dark["mean"]
        assert bright["mean_base"] == scored[0]["judge.py:brightness"]["mean_base"], "the base is drawn once"
        assert 0 <= bright["win_rate_low"] <= bright["win_rate"] <= bright["win_rate_high"] <= 1
    last = Trainer(dataclasses.replace(run, out=str(Path(run.out).parent / "again")))
    last.load(Path(run.out) / "checkpoint-6")
    listed = evaluating.prompts(run, [])
    artist = evaluating.artist(run, last.backbone, listed)
    work = [(p.id, n) for n in range(2) for p in listed]
    by_hand = [-float(np.mean(p)) for p in watching.draw(last, artist, work)]
    assert np.mean(by_hand) == pytest.approx(scored[-1]["judge.py:darkness"]["mean"], abs=1e-9)


def test_previews_show_base_and_policy_from_step_0(watched: tuple[Run, str]) -> None:
    run, _ = watched
    files = sorted((Path(run.out) / "previews").iterdir())
    assert [f.name for f in files] == [f"step-{n:06d}.png" for n in (0, 2, 3, 4, 6)]
    first, last = (np.asarray(PIL.Image.open(f).convert("RGB")).astype(int) for f in (files[0], files[-1]))
    # the picture's squares: at step 0 both sides are one picture, at the end they are not
    margin, side, gap = 24 * 2, 128 * 2, 6 * 2
    top = margin + 17 * 2

    def squares(sheet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return tuple(sheet[top + 2 : top + side - 2, x + 2 : x + side - 2] for x in (margin, margin + side + gap))

    before, after = squares(first)
    assert (before == after).all()
    before, after = squares(last)
    assert (before == squares(first)[0]).all()
    assert (before != after).any()


def test_the_best_checkpoint_is_kept_exported_and_named(watched: tuple[Run, str]) -> None:
    run, said = watched
    out, name = Path(run.out), "judge.py:darkness"
    values = {r["step"]: r["scorers"][name]["win_rate"] for r in rows(run) if "scorers" in r}
    step = max(values, key=lambda s: (values[s], -s))
    best = json.loads((out / "best.json").read_text())
    assert (best["step"], best["metric"], best["value"]) == (step, f"win rate by {name}", values[step])
    assert {p.name for p in out.glob("checkpoint-*")} == {f"checkpoint-{step}", "checkpoint-6"}
    assert f"best checkpoint-{step}, win rate by {name} {values[step]:.1%} [" in said
    assert f"--lora {out / 'best'} …" in said
    from safetensors.torch import load_file

    kept = load_file(out / f"checkpoint-{step}" / "policy.safetensors")
    exported = load_file(out / "best" / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(t, exported[f"unet.{n.replace('.default', '')}"]) for n, t in kept.items())
    assert train(run) == said


@pytest.mark.parametrize("name", ["policy", "best"])
def test_the_card_says_what_the_evaluation_found(watched: tuple[Run, str], name: str) -> None:
    """Of the step that was exported: its win rates, and its preview."""
    place = Path(watched[0].out)
    step = 6 if name == "policy" else json.loads((place / "best.json").read_text())["step"]
    row = next(r for r in rows(watched[0]) if r["step"] == step)
    text = (place / name / "README.md").read_text()
    for judge, numbers in row["scorers"].items():
        assert f"| {judge} | {numbers['win_rate']:.1%} | {numbers['win_rate_low']:.1%} to" in text
    assert "over 4 prompts" in text
    assert "](preview.png)" in text
    preview = place / "previews" / f"step-{step:06d}.png"
    assert (place / name / "preview.png").read_bytes() == preview.read_bytes()


def test_a_stop_between_evaluations_ends_the_same(watched: tuple[Run, str], tmp_path: Path) -> None:
    """Told to stop by SIGTERM after step 3, and run again: the same evaluations, the same best, the same policy."""
    whole, _ = watched
    run = dataclasses.replace(whole, out=str(tmp_path / "run"))
    with pytest.MonkeyPatch.context() as patch:
        original = journal.append

        def append(path: Path, entry: dict[str, object]) -> None:
            original(path, entry)
            if path.name == "metrics.jsonl" and entry["step"] == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(journal, "append", append)
        with pytest.raises(Stopped, match="step 3 is saved, and the same command goes on") as caught:
            train(run)
    assert caught.value.status == 143
    assert (tmp_path / "run" / "checkpoint-3").is_dir()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert train(run).startswith("went on from step 3; ")
    assert rows(run) == rows(whole)
    for name in ("best.json", "policy/pytorch_lora_weights.safetensors", "best/pytorch_lora_weights.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (Path(whole.out) / name).read_bytes()


def test_what_is_drawn_beside_it_does_not_change_the_run(watched: tuple[Run, str], tmp_path: Path) -> None:
    whole, _ = watched
    plain = dataclasses.replace(whole, out=str(tmp_path / "run"), evaluate=Evaluate(preview_every=0))
    train(plain)
    for name in ("metrics.jsonl", "policy/pytorch_lora_weights.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (Path(whole.out) / name).read_bytes()
    assert not (tmp_path / "run" / "previews").exists()


def test_evaluations_that_cannot_be_are_refused(watched: tuple[Run, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluate.every: needs evaluate.scorers and evaluate.prompts"):
        Evaluate(every=10)
    run = dataclasses.replace(watched[0], out=str(tmp_path / "run"))
    wrong = dataclasses.replace(run, evaluate=dataclasses.replace(run.evaluate, best="gold"))
    with pytest.raises(InputError, match="evaluate.best = gold: expected one of evaluate.scorers"):
        train(wrong)


# --- alarms

CALM = {"loss": 0.69, "margin": 0.1, "accuracy": 0.6, "chosen_error": -1e-3, "rejected_error": 1e-3, "gradient_norm": 1}


def history(**changed: list[float]) -> list[dict[str, float]]:
    """Twenty rows of metrics, calm but for the last values of some."""
    calm = [{"step": n + 1, **CALM} for n in range(20)]
    for name, values in changed.items():
        for row, value in zip(calm[-len(values) :], values, strict=True):
            row[name] = value
    return calm


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({}, None),
        ({"chosen_error": [1e-3, 2e-3] * 5}, "likelihood displacement"),
        ({"chosen_error": [-3e-3, 4e-3] * 5}, None),
        ({"margin": [30.0] * 10}, "exploding margins"),
        ({"margin": [-30.0] * 10}, "exploding margins"),
        ({"accuracy": [1.0] * 10}, "accuracy pinned at 1"),
        ({"accuracy": [1.0] * 9}, None),
        ({"gradient_norm": [1e-4] * 10}, "vanishing gradients"),
    ],
)
def test_an_alarm_for_each_ill_and_none_for_the_well(changed: dict[str, list[float]], name: str | None) -> None:
    found = alarms.alarms(history(**changed))
    assert [a.name for a in found] == ([name] if name else [])
    for alarm in found:
        assert str(alarm).startswith(f"{name} (step ")
        assert "Usual remedy: " in str(alarm)


def test_no_alarm_before_there_is_enough_to_go_by() -> None:
    assert alarms.alarms(history(margin=[99.0] * 20)[:9]) == []
    first = alarms.alarms(history(margin=[99.0] * 20))[0]
    assert first.step == 10, "at the first step where it was due"


def test_drift_of_the_pictures() -> None:
    seen = [{"step": 5, "saturation": 1.1, "contrast": 0.9}, {"step": 9, "saturation": 1.8, "contrast": 0.5}]
    assert [(a.name, a.step) for a in alarms.alarms([], seen)] == [("drift in saturation", 9), ("drift in contrast", 9)]
    grey = np.full((2, 8, 8, 3), 100, np.uint8)
    red = grey.copy()
    red[..., 0] = 255
    half = grey.copy()
    half[:, :4] = 200
    assert evaluating.saturation(grey) == 0
    assert evaluating.saturation(red) == pytest.approx(155 / 255)
    assert evaluating.contrast(grey) == 0
    assert evaluating.contrast(half) == pytest.approx(50 / 255)


def test_the_bell_rings_once_also_over_a_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    with caplog.at_level(logging.WARNING, "diffalign"):
        ring = watching.bell(tmp_path)
        for row in history(margin=[99.0] * 12):
            journal.append(path, row)
            ring(row)
        assert [r.getMessage()[:24] for r in caplog.records] == ["alarm: exploding margins"]
        ring = watching.bell(tmp_path)
        ring({"step": 21, **CALM, "margin": 99.0})
        assert len(caplog.records) == 1
        ring({"step": 21, "saturation": 3.0, "contrast": 1.0})
        assert caplog.records[-1].getMessage().startswith("alarm: drift in saturation (step 21)")


# --- where numbers go


def test_progress_says_what_a_step_did() -> None:
    entry = {"step": 4, "groups": 12, "learning_rate": 1e-5, **CALM}
    said = watching.in_words(entry, 0.5, "pairs")
    assert said == "6 pairs/s margin +0.1 accuracy 60% chosen -0.001 rejected +0.001 gradient 1 lr 1e-05"


def test_a_log_file_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("train", 0, 9, quiet_for=0) as tell:
        tell(3, "margin +1")
    assert capsys.readouterr().err == "train 3/9: margin +1\n"
    with progress.bar("train", 0, 9) as tell:
        tell(3, "margin +1")
    assert capsys.readouterr().err == ""


def test_trackers_of_accelerate(watched: tuple[Run, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker whose package is missing is refused; one that is there is told everything, and closed."""
    told: list[object] = []

    class Fake:
        trackers: list[object] = []
        is_main_process = True

        def init_trackers(self, name: str, config: dict[str, object], options: dict[str, object]) -> None:
            told.append((name, config["objective.beta"], config["evaluate.noises"]))

        def log(self, values: dict[str, float], step: int) -> None:
            told.append((values, step))

        def end_training(self) -> None:
            told.append("end")

    fake, run = Fake(), dataclasses.replace(watched[0], log_with="wandb")
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(InputError, match="log_with = wandb: its package is not installed"):
        tracking.expect("wandb")
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.WANDB])
    tracking.expect("wandb")
    board = tracking.board(run, fake, 0)
    board.scalars({"train/loss": 1.0}, 3)
    board.close()
    assert told == [("diffalign", 2000.0, 2), ({"train/loss": 1.0}, 3), "end"]
    assert isinstance(tracking.board(dataclasses.replace(run, log_with="none"), fake, 0), tracking.Silent)


def test_tensorboard_has_numbers_and_pictures(watched: tuple[Run, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(watched[0].out) / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [e.step for e in events.Scalars("train/margin")] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events.Scalars("evaluation/judge.py:darkness/win_rate")] == [2, 4, 6]
    assert [e.step for e in events.Images("preview")] == [0, 2, 3, 4, 6]
    assert PIL.Image.open(io.BytesIO(events.Images("preview")[0].encoded_image_string)).width > 300


def test_a_stop_cannot_be_heard_in_another_thread() -> None:
    import threading

    heard: list[bool] = []

    def other() -> None:
        with training._told() as told:
            heard.append(told())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert heard == [False]
