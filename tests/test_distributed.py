"""The same on many: two processes see what one sees and end in the same weights, copied or sharded."""

import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from processes import together
from safetensors.torch import load_file, save_file

from diffalign import checkpoint, launching, optimizers, step, wrapping
from diffalign.objectives import DPO, KTO, PlackettLuce
from diffalign.records import InputError
from diffalign.run import EMA, AdamW, Full, LoRA, Run
from diffalign.trainer import Trainer
from diffalign.training import Stopped, train

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
PLAIN = Run("none", DPO(), policy=LoRA(rank=2), precision="float32")
ADAPTER = "pytorch_lora_weights.safetensors"


def cases(models: dict[str, Path], data: dict[str, Path], place: Path) -> dict[str, Run]:
    """Name -> a run of two steps in float64, on pairs, lists and what couples a batch."""
    plain = Run(
        model=str(models["sdxl"]), objective=DPO(beta=2000.0), policy=LoRA(rank=2, alpha=4.0), data=str(data["pair"]),
        out=str(place), steps=2, batch=8, resolution=32, optimizer=AdamW(lr=3e-3), precision="float64",
        save_every=1, log_every=1,
    )  # fmt: skip
    return {
        "pairs": plain,
        "parts": dataclasses.replace(plain, micro_batch=2, ema=0.75),
        "lists": dataclasses.replace(plain, objective=PlackettLuce(), data=str(data["ranking"]), batch=4),
        "coupled": dataclasses.replace(plain, objective=KTO(), data=str(data["unpaired"])),
        "full": dataclasses.replace(plain, policy=Full(), reference=EMA(decay=0.5), optimizer=AdamW(lr=1e-4), ema=0.75),
        # a family of which no gradient reaches some weights
        "idle": dataclasses.replace(plain, policy=Full(), model=str(models["qwen_image"]), optimizer=AdamW(lr=1e-4)),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("judgements")
    return {
        "pair": worlds.pairs(place / "pair"),
        "ranking": worlds.ranked(place / "ranking"),
        "unpaired": worlds.single(place / "unpaired"),
    }


def steps_of(run: Run) -> tuple[Trainer, list[list[tuple[str, int]]]]:
    """A trainer at its end, and what this process saw of each step."""
    trainer, seen = Trainer(run), []
    while trainer.step < run.steps:
        parts = trainer._parts(trainer._visits(trainer.step))
        seen.append([(v.group.id, v.draw) for part in parts for v in part])
        trainer._advance()
    return trainer, seen


# --- what the processes do


def copies(place: Path, runs: dict[str, Run]) -> None:
    """Every case with the denoiser copied; the first process writes the weights, each what it saw."""
    rank, seen = int(os.environ["RANK"]), {}
    for name, run in runs.items():
        trainer, seen[name] = steps_of(run)
        if rank == 0:
            save_file(trainer.policy.state(), place / f"{name}.safetensors")
    (place / f"seen-{rank}.json").write_text(json.dumps(seen))
    whole = dataclasses.replace(runs["pairs"], out=str(place / "run"))
    said = train(dataclasses.replace(whole, steps=2))
    assert said.startswith(f"{place / 'run' / 'policy'} after 2 steps")
    # one process is told to stop in a step that is not logged
    told = dataclasses.replace(whole, out=str(place / "told"), steps=6, save_every=100, log_every=100)
    with pytest.MonkeyPatch.context() as patch:
        advance = Trainer._advance

        def telling(trainer: Trainer) -> Any:
            done = advance(trainer)
            if (rank, done.index) == (1, 2):
                os.kill(os.getpid(), signal.SIGTERM)
            return done

        patch.setattr(Trainer, "_advance", telling)
        with pytest.raises(Stopped, match="step 3 is saved"):
            train(told)
    # a full disk in one process ends all of them
    broken = dataclasses.replace(whole, out=str(place / "broken"))
    with pytest.MonkeyPatch.context() as patch:

        def fail(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")

        patch.setattr(checkpoint, "save", fail)
        with pytest.raises(OSError if rank == 0 else wrapping.Lost):
            train(broken)


def shards(place: Path, runs: dict[str, Run]) -> None:
    """The same with the denoiser sharded; saved and gone on with in parts."""
    rank = int(os.environ["RANK"])
    os.environ |= SHARDED
    for name in ("pairs", "parts", "full", "idle"):
        trainer = Trainer(runs[name])
        blocks = [m for m in trainer.policy.denoiser.modules() if isinstance(m, wrapping.FSDPModule)]
        assert len(blocks) > 1
        held = sum(wrapping.local(p.data).numel() for p in trainer.policy.denoiser.parameters())
        assert held < 0.6 * sum(p.numel() for p in trainer.policy.denoiser.parameters())
        visits = trainer._parts(trainer._visits(trainer.step))[0]
        errors = trainer.passes.measure(visits)[0]
        assert torch.equal(errors.policy, errors.reference), "the reference is the policy at step 0"
        start = errors.reference
        trainer._advance()
        trainer.save(place / name / "checkpoint-1")
        errors = trainer.passes.measure(visits)[0]
        assert (errors.policy != errors.reference).any()
        if name != "full":  # whose reference moves
            torch.testing.assert_close(errors.reference, start, rtol=1e-12, atol=0)
        again = Trainer(runs[name])
        again.load(place / name / "checkpoint-1")
        for one in (trainer, again):
            one._advance()
        for mine, other in zip(trainer.policy.state().values(), again.policy.state().values(), strict=True):
            assert torch.equal(mine, other)
        held = {n: wrapping.whole(wrapping.local(p.data), p.data) for n, p in trainer.policy.masters.items()}
        trainer.export(place / name / "policy", {})
        if rank == 0:
            save_file(held, place / f"{name}.safetensors")
    run = dataclasses.replace(runs["pairs"], out=str(place / "run"))
    said, heard = [], logging.Handler()
    heard.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger("diffalign")
    log.setLevel(logging.INFO)
    log.addHandler(heard)
    with pytest.MonkeyPatch.context() as patch:  # by other words, for which what is done here is said
        for name, value in (STAGED | {STAGE: "3"}).items():
            patch.setenv(name, value)
        train(run)
    (place / f"said-{rank}.json").write_text(json.dumps(said))
    broken = dataclasses.replace(run, out=str(place / "broken"))
    with pytest.MonkeyPatch.context() as patch:

        def fail(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")

        if rank == 1:
            patch.setattr(checkpoint, "save_file", fail)
        with pytest.raises(OSError if rank == 1 else wrapping.Lost):
            train(broken)


# --- what is compared


@pytest.fixture(scope="module")
def alone(
    models: dict[str, Path], data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Run], dict[str, dict[str, torch.Tensor]], dict[str, list[list[tuple[str, int]]]]]:
    """(runs, final weights, what was seen) of one process; the caches lie in the runs' folder already."""
    runs = cases(models, data, tmp_path_factory.mktemp("alone"))
    weights, seen = {}, {}
    for name, run in runs.items():
        run = dataclasses.replace(run, out=str(Path(run.out) / Path(run.data).parent.name))
        runs[name] = run
        trainer, seen[name] = steps_of(run)
        weights[name] = {n: t.clone() for n, t in trainer.policy.state().items()}
        if name in ("parts", "full", "idle"):
            trainer.export(Path(run.out) / f"{name} policy", {})
    return runs, weights, seen


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-10)


def test_one_by_eight_is_eight_by_one(alone: tuple) -> None:
    runs, weights, _ = alone
    same(weights["parts"], weights["pairs"])
    trainer, _ = steps_of(dataclasses.replace(runs["pairs"], micro_batch=1))
    same(trainer.policy.state(), weights["pairs"])


def test_two_processes_see_and_learn_what_one_does(alone: tuple, tmp_path: Path) -> None:
    runs, weights, seen = alone
    together(copies, tmp_path, runs)
    halves = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    for name, steps in seen.items():
        for number, whole in enumerate(steps):
            one, other = ([tuple(v) for v in half[name][number]] for half in halves)
            assert len(one) == len(other) == len(whole) // 2
            assert sorted(one + other) == sorted(whole)
        same(load_file(tmp_path / f"{name}.safetensors"), weights[name])
    state = checkpoint.load(tmp_path / "run" / "checkpoint-2")[0]["policy"]
    same(state, weights["pairs"])
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()] == [1, 2]
    assert [p.name for p in (tmp_path / "told").glob("checkpoint-*")] == ["checkpoint-3"]


def test_sharded_is_the_same_and_saves_in_parts(alone: tuple, tmp_path: Path) -> None:
    runs, weights, _ = alone
    together(shards, tmp_path, runs)
    said = [json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in (0, 1)]
    launched = [[line for line in lines if "DeepSpeed" in line] for lines in said]
    assert [len(lines) for lines in launched] == [1, 0], "once, by the first process"
    assert launched[0][0].startswith("DeepSpeed's stage 3 is asked for: ")
    for name in ("pairs", "parts", "full", "idle"):
        same(load_file(tmp_path / f"{name}.safetensors"), weights[name])
        files = {p.name for p in (tmp_path / name / "checkpoint-1").iterdir()}
        assert {"policy-0-of-2.safetensors", "policy-1-of-2.safetensors", "state.json"} <= files
        if name != "pairs":  # the average, whole, as one process writes it
            mine, whole = tmp_path / name / "policy", Path(runs[name].out) / f"{name} policy"
            (file,) = (f.relative_to(whole) for f in whole.rglob("*.safetensors"))
            same(load_file(mine / file), load_file(whole / file))
        # one process goes on with what two have saved
        trainer = Trainer(runs[name])
        trainer.load(tmp_path / name / "checkpoint-1")
        trainer._advance()
        same(trainer.policy.state(), weights[name])
    exported = load_file(tmp_path / "run" / "policy" / "pytorch_lora_weights.safetensors")
    same({n.replace(".default", ""): t for n, t in exported.items()}, {
        f"unet.{n.replace('.default', '')}": t for n, t in weights["pairs"].items()
    })  # fmt: skip


# --- gradients of narrow weights


def averaged(place: Path) -> None:
    """300 gradients of one, of which bfloat16 counts 256; then three weights in buckets, one without a gradient."""
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    narrow = {"w": torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))}
    wide = {"w": torch.nn.Parameter(torch.zeros(3))}
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    network._no_split_modules = ["Linear"]
    for weight in network.parameters():
        weight.data.fill_(1)
    wrapping.shard(network, torch.device("cpu"), narrow=torch.bfloat16)
    counted = torch.zeros((), dtype=torch.bfloat16)
    for number in range(300):
        counted += 1
        narrow["w"].grad = torch.ones(3, dtype=torch.bfloat16)
        optimizers.collect(narrow, wide)
        with contextlib.nullcontext() if number == 299 else wrapping.quiet(network):
            network(torch.full((1, 3), 1.0 + rank, dtype=torch.bfloat16)).sum().backward()
    assert counted == 256
    wrapping.average(list(wide.values()))
    assert torch.equal(wide["w"].grad, torch.full((3,), 300.0))
    found = {n: p.grad for n, p in network.named_parameters()}
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert torch.equal(found["0.weight"].full_tensor(), torch.full((2, 3), 450.0))
    assert torch.equal(found["1.bias"].full_tensor(), torch.full((1,), 300.0))
    weights = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 2, 4)]
    for n, weight in enumerate(weights):
        weight.grad = torch.full(weight.shape, n + rank + 0.5) if (n, rank) != (1, 1) else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wrapping, "BUCKET", 5)
        wrapping.average(weights)
    assert [w.grad.tolist() for w in weights] == [[1.0] * 3, [0.75] * 2, [3.0] * 4]


def test_gradients_meet_in_float32(tmp_path: Path) -> None:
    together(averaged, tmp_path)


def collected(place: Path, runs: dict[str, Run]) -> None:
    """The gradients of the first step, copied and sharded, and those of its micro-batches one by one."""
    rank = int(os.environ["RANK"])
    for way, told in {"copied": {}, "sharded": SHARDED}.items():
        for name, run in runs.items():
            with pytest.MonkeyPatch.context() as patch:
                for key, value in told.items():
                    patch.setenv(key, value)
                trainer = Trainer(run)
                exchanged, before = [], []
                # of which torch's versions call different ones
                for call in (n for n in dir(torch.distributed) if n.startswith(("all_reduce", "reduce_scatter"))):
                    patch.setattr(torch.distributed, call, noted(getattr(torch.distributed, call), exchanged))
                learn = step.learn

                def seen(*args: Any, learn: Any = learn, before: Any = before, exchanged: Any = exchanged) -> Any:
                    before.append(len(exchanged))
                    return learn(*args)

                patch.setattr(step, "learn", seen)
                trainer.step = 1
                trainer._gradients()
            assert before == [0] * 8, "no gradient is exchanged before the last micro-batch"
            assert exchanged
            found = [gradients_of(trainer)]
            for part in trainer._parts(trainer._visits(0)):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(trainer, "_parts", lambda *_, part=part: [part])
                    trainer._gradients()
                found.append(gradients_of(trainer))
            if rank == 0:
                for n, gradients in enumerate(found):
                    save_file(gradients, place / f"{way} {name} {n}.safetensors")


def gradients_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Whole gradients, which are forgotten; float32."""
    masters = trainer.policy.masters
    assert {p.grad.dtype for p in masters.values()} == {torch.float32}
    found = {n: wrapping.whole(wrapping.local(p.grad), p.data).clone() for n, p in masters.items()}
    trainer.optimizer.zero_grad(set_to_none=True)
    return found


def noted(call: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def noting(*args: Any, **kwargs: Any) -> Any:
        calls.append(call.__name__)
        return call(*args, **kwargs)

    return noting


def test_gradients_of_narrow_weights_add_up_in_float32(
    models: dict[str, Path], data: dict[str, Path], tmp_path: Path
) -> None:
    """Over micro-batches and processes, to float32's own rounding; in bfloat16 they do not."""
    plain = Run(
        model=str(models["sdxl"]), objective=DPO(beta=2000.0), data=str(data["pair"]), out=str(tmp_path / "run"),
        steps=1, batch=16, micro_batch=1, resolution=32, precision="bfloat16",
    )  # fmt: skip
    runs = {"full": dataclasses.replace(plain, policy=Full()), "lora": dataclasses.replace(plain, policy=LoRA(rank=2))}
    together(collected, tmp_path, runs)
    for way, name in itertools.product(("copied", "sharded"), runs):
        found, *parts = (load_file(tmp_path / f"{way} {name} {n}.safetensors") for n in range(9))
        lost = 0
        for n, gradient in found.items():
            told = torch.stack([part[n] for part in parts]).double()
            # some roundings of float32, of terms that may cancel; one of bfloat16 is 2^-9
            bound = 2.0**-18 * told.abs().sum(0) + 2.0**-20 * told.abs().max()
            assert ((gradient - told.sum(0)).abs() <= bound).all(), f"{way} {name} {n}"
            narrow = functools.reduce(torch.add, told.bfloat16())
            lost += int(((narrow - told.sum(0)).abs() > bound).sum())
        assert lost > 0.5 * sum(g.count_nonzero() for g in found.values()), "bfloat16 keeps to no such bound"


def test_the_older_sharding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(InputError, match="fsdp_version = 1; expected 2"):
        launching.asked(PLAIN)
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(InputError, match="fsdp_offload_params = true: nothing is offloaded here"):
        launching.asked(PLAIN)
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "false")
    assert launching.asked(PLAIN).shards


PRESETS = sorted((Path(__file__).parent.parent / "train" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_presets_are_what_accelerate_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own reader, and what its launcher makes of them is what is read here."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import prepare_multi_gpu_env

    config = load_config_from_file(str(path))
    assert config.num_machines == 1
    words = ["--config_file", str(path), "-m", "diffalign", "train"]
    told = prepare_multi_gpu_env(_validate_launch_command(launch_command_parser().parse_args(words))[0])
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_RESHARD_AFTER_FORWARD"):
        monkeypatch.delenv(name, raising=False)
        if name in told:
            monkeypatch.setenv(name, told[name])
    found = launching.asked(PLAIN)
    assert found.shards == (path.stem in ("fsdp2", "zero2", "zero3"))
    assert found.again == (path.stem != "zero2")
    text = path.read_text(encoding="utf-8")
    assert f"--config_file train/accelerate/{path.name} " in text
    assert "untested" in text or "not at hand" in text or "not on an accelerator" in text


# --- DeepSpeed's words for it

STAGED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_CONFIG_DS_FIELDS": "zero_stage"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., launching.Asked]:
    """What is asked of a run by an environment, of two processes."""
    plain = Run("none", DPO(), policy=LoRA(rank=2), batch=8, micro_batch=2, precision="bfloat16")

    def asked(changes: dict[str, Any] | None = None, /, **told: str) -> launching.Asked:
        for name, value in (STAGED | {"RANK": "0", "WORLD_SIZE": "2"} | told).items():
            monkeypatch.setenv(name, value)
        return launching.asked(dataclasses.replace(plain, **(changes or {})))

    return asked


STAGE, DEVICE = "ACCELERATE_DEEPSPEED_ZERO_STAGE", "ACCELERATE_DEEPSPEED_OFFLOAD_{}_DEVICE"


@pytest.mark.parametrize(
    ("stage", "shards", "again"),
    [("0", False, True), ("1", True, False), ("2", True, False), ("3", True, True), (None, True, False)],
)
def test_stages_are_ways_of_sharding(launched: Any, stage: str | None, shards: bool, again: bool) -> None:
    found = launched(**({STAGE: stage} if stage else {}))
    assert (found.shards, found.again) == (shards, again)
    assert found.said.startswith(f"DeepSpeed's stage {stage or 2} is asked for")
    assert "\n" not in found.said


def test_what_agrees_with_the_run_is_taken(launched: Any) -> None:
    agreed = {
        "ACCELERATE_GRADIENT_CLIPPING": "1.0", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2",
        DEVICE.format("OPTIMIZER"): "none", DEVICE.format("PARAM"): "none", "ACCELERATE_MIXED_PRECISION": "bf16",
    }  # fmt: skip
    assert launched(**agreed).shards
    assert launched(**dict.fromkeys(("ACCELERATE_GRADIENT_CLIPPING", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"), "auto"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (STAGE, "4", "zero_stage = 4: expected 0, 1, 2 or 3"),
        (DEVICE.format("OPTIMIZER"), "cpu", "offload_optimizer_device = cpu: nothing is offloaded here; expected none"),
        (DEVICE.format("PARAM"), "nvme", "offload_param_device = nvme: nothing is offloaded here; expected none"),
        (
            "ACCELERATE_GRADIENT_CLIPPING",
            "0.5",
            r"gradient_clipping = 0.5: the run has optimizer.max_grad_norm = 1.0; ",
        ),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps = 4: .* = 2; expected 2, "),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed_precision = fp16: the run has precision = bfloat16; expected"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "mixed_precision = fp8: the run has precision = bfloat16; expected"),
    ],
)
def test_what_would_be_done_otherwise_is_refused_by_name(launched: Any, name: str, value: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        launched(**{name: value})
    assert "\n" not in str(caught.value)


def configured(place: Path, **sections: Any) -> dict[str, str]:
    """The environment of a launch by a file that says these sections beside stage 3."""
    whole = {"zero_optimization": {"stage": 3, "overlap_comm": True, "stage3_prefetch_bucket_size": "auto"}} | sections
    place.write_text(json.dumps(whole))
    return {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(place)}


def test_a_file_of_deepspeed_is_read(launched: Any, tmp_path: Path) -> None:
    """What is "auto" there is the environment's, or the run's."""
    autos = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping", "gradient_accumulation_steps")
    sections = dict.fromkeys(autos, "auto") | {"bf16": {"enabled": "auto"}, "fp16": {"enabled": False}}
    sections |= {"steps_per_print": 100, "tensorboard": {"enabled": False}, "prescale_gradients": False}
    found = launched(**configured(tmp_path / "auto.json", **sections))
    assert (found.shards, found.again) == (True, True)
    stage = configured(
        tmp_path / "stage.json", zero_optimization={"stage": "auto", "offload_param": {"device": "none"}}
    )
    assert not launched(**stage, **{STAGE: "2"}).again
    told = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}
    assert launched(**configured(tmp_path / "told.json", **told, gradient_clipping=1.0, bf16={"enabled": True}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"zero_optimization": {"stage": 5}}, "zero_optimization.stage = 5: expected 0, 1, 2 or 3"),
        ({"zero_optimization": None}, "zero_optimization: is missing; expected at least its stage"),
        ({"zero_optimization": {"overlap_comm": True}}, "zero_optimization.stage: is missing; expected 0, 1, 2, 3 or"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
            "offload_param.device = cpu: nothing",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
            "offload_optimizer.device = nvme",
        ),
        (
            {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}},
            "zero_quantized_weights: is not done here",
        ),
        ({"optimizer": {"type": "AdamW"}}, "optimizer: is not done here; expected none"),
        (
            {"gradient_clipping": 0.1},
            "gradient_clipping = 0.1: the run has optimizer.max_grad_norm = 1.0; expected 1.0, ",
        ),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps = 1: .* expected 2"),
        ({"train_batch_size": 16}, "train_batch_size = 16: the run has batch = 8; expected 8"),
        ({"train_micro_batch_size_per_gpu": 1}, "train_micro_batch_size_per_gpu = 1: the run has micro_batch = 2"),
        ({"fp16": {"enabled": True}}, "fp16.enabled = true: the run has precision = bfloat16"),
        ({"bf16": {"enabled": False}}, "bf16.enabled = false: the run has precision = bfloat16"),
    ],
)
def test_a_file_that_asks_for_more_is_refused_by_name(
    launched: Any, tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        launched(**configured(tmp_path / "ds.json", **sections))
    assert str(caught.value).startswith(f"{tmp_path / 'ds.json'}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_named(launched: Any, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"train_batch_size": 8}'):
        (tmp_path / "ds.json").write_text(text)
        with pytest.raises(InputError, match=r"ds\.json: "):
            launched(ACCELERATE_DEEPSPEED_CONFIG_FILE=str(tmp_path / "ds.json"))
    with pytest.raises(InputError, match=r"none\.json: is no deepspeed_config_file"):
        launched(ACCELERATE_DEEPSPEED_CONFIG_FILE=str(tmp_path / "none.json"))


def staged(place: Path, run: Run) -> None:
    """A run by every stage, launched by DeepSpeed's words and by those for the same sharding."""
    rank = int(os.environ["RANK"])
    ways = {
        "fsdp-2": SHARDED | {"FSDP_RESHARD_AFTER_FORWARD": "false"}, "fsdp-3": SHARDED, "ddp-0": {},
        **{f"deepspeed-{stage}": STAGED | {STAGE: str(stage)} for stage in (0, 2, 3)},
    }  # fmt: skip
    for name, told in ways.items():
        with pytest.MonkeyPatch.context() as patch:
            for key, value in told.items():
                patch.setenv(key, value)
            trainer = Trainer(dataclasses.replace(run, out=str(place / name)))
            blocks = [m for m in trainer.policy.denoiser.modules() if isinstance(m, wrapping.FSDPModule)]
            assert bool(blocks) == (not name.endswith("0"))
            kept = {b._get_fsdp_state()._fsdp_param_group.post_forward_mesh_info is None for b in blocks[1:]}
            assert kept == ({name.endswith("2")} if blocks else set())
            for _ in trainer:
                pass
            trainer.export(place / name / "policy", {})
    if rank == 0:
        (place / "done").touch()


def test_a_launch_by_stage_is_the_sharding_of_that_stage(alone: tuple, tmp_path: Path) -> None:
    """Byte for byte, without DeepSpeed's package, which is not installed here."""
    runs, _, _ = alone
    together(staged, tmp_path, runs["parts"])
    for stage, same_as in ((0, "ddp"), (2, "fsdp"), (3, "fsdp")):
        mine, other = (tmp_path / f"{name}-{stage}" / "policy" / ADAPTER for name in ("deepspeed", same_as))
        assert mine.read_bytes() == other.read_bytes()


def test_one_process_says_nothing_of_deepspeed(
    alone: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It shares with nobody; and accelerate, which takes no "auto" for a number, is not asked to."""
    runs, _, _ = alone
    for name, value in (STAGED | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"}).items():
        monkeypatch.setenv(name, value)
    with caplog.at_level("INFO", logger="diffalign"):
        train(dataclasses.replace(runs["pairs"], out=str(tmp_path), steps=1))
    assert not [r for r in caplog.records if "DeepSpeed" in r.getMessage()]
    assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "true"


def test_one_process_shares_with_nobody(alone: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, weights, _ = alone
    for name, value in SHARDED.items():
        monkeypatch.setenv(name, value)
    trainer, _ = steps_of(runs["pairs"])
    same(trainer.policy.state(), weights["pairs"])


def test_there_is_a_preset_for_each_way() -> None:
    assert [p.stem for p in PRESETS] == ["fsdp2", "many_gpus", "one_gpu", "zero2", "zero3"]
