"""Models and adapters as strangers have them, by the command line: what works works, what does not is one line."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import tiny
import torch
from huggingface_hub.errors import GatedRepoError

from diffalign import backbones, cli, export, weights
from diffalign.backbones import single_file


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`diffalign WORDS`, in this process: (exit status, what it said)."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["diffalign", *map(str, words)])
        try:
            cli.main()
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    return run


def small(model: Path | str, pairs: Path, out: Path) -> list[object]:
    return [
        *("--model", model, "--data", pairs, "--out", out, "--steps", 2, "--batch", 2, "--micro-batch", 0),
        *("--resolution", 32, "--save-every", 1),
    ]


# --- bad models


def changed(folder: Path, out: Path, file: str, **changes: object) -> Path:
    shutil.copytree(folder, out)
    (out / file).write_text(json.dumps(json.loads((out / file).read_text()) | changes))
    return out


def without_index(models: dict[str, Path], place: Path) -> list[object]:
    shutil.copytree(models["sd"], place / "m")
    (place / "m" / "model_index.json").unlink()
    return [place / "m"]


def without_tokenizer(models: dict[str, Path], place: Path) -> list[object]:
    shutil.copytree(models["sd"], place / "m")
    shutil.rmtree(place / "m" / "tokenizer")
    return [place / "m"]


def a_run(models: dict[str, Path], place: Path) -> list[object]:
    (place / "m").mkdir()
    (place / "m" / "run.json").write_text("{}")
    return [place / "m"]


def refiner(models: dict[str, Path], place: Path) -> list[object]:
    none = {"text_encoder": [None, None], "tokenizer": [None, None]}
    return [changed(models["sdxl"], place / "m", "model_index.json", **none), "--family", "sdxl"]


def magic(models: dict[str, Path], place: Path) -> list[object]:
    return [changed(models["sd"], place / "m", "scheduler/scheduler_config.json", prediction_type="magic")]


def truncated(models: dict[str, Path], place: Path) -> list[object]:
    shutil.copytree(models["sd"], place / "m")
    file = place / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-5000])
    return [place / "m"]


def pickled(models: dict[str, Path], place: Path) -> list[object]:
    (place / "v1-5.ckpt").write_bytes(b"\x80\x04.")
    return [place / "v1-5.ckpt"]


def pickled_part(models: dict[str, Path], place: Path) -> list[object]:
    shutil.copytree(models["sd"], place / "m")
    file = place / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    return [place / "m"]


def renamed(models: dict[str, Path], place: Path) -> list[object]:
    (place / "model.safetensors").write_bytes(b"PK\x03\x04 an archive that somebody renamed")
    return [place / "model.safetensors"]


def sdxl_file(models: dict[str, Path], place: Path) -> list[object]:
    single_file.write(tiny.sdxl(), place / "sdxl.safetensors")
    return [place / "sdxl.safetensors", "--config", models["sd"]]


def flux_file(models: dict[str, Path], place: Path) -> list[object]:
    safetensors.torch.save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, place / "m.safetensors")
    return [place / "m.safetensors"]


def odd_size(models: dict[str, Path], place: Path) -> list[object]:
    return [models["flux"], "--family", "flux", "--resolution", 36 + 1]


def flow_for_terminal_snr(models: dict[str, Path], place: Path) -> list[object]:
    return [models["sd3"], "--family", "sd3", "--states.zero-terminal-snr"]


def other_family(models: dict[str, Path], place: Path) -> list[object]:
    return [models["sdxl"]]


def file_of_another_family(models: dict[str, Path], place: Path) -> list[object]:
    single_file.write(tiny.sdxl(), place / "sdxl.safetensors")
    return [place / "sdxl.safetensors", "--config", models["sdxl"]]


def nowhere(models: dict[str, Path], place: Path) -> list[object]:
    return ["nobody/nothing"]


BAD = {
    without_index: r"m: holds no model_index.json; expected a model folder",
    without_tokenizer: r"m: holds no tokenizer/, which its model_index.json names; copy the whole model",
    a_run: r"m: is a run and no model; name what it was trained on, `--model BASE --lora RUN`, or",
    refiner: r"a refiner.*expected an SDXL base model",
    magic: r"m/scheduler/scheduler_config.json: prediction type 'magic': expected",
    truncated: r"diffusion_pytorch_model.safetensors: is not a whole safetensors file; \d+ bytes, expected \d+",
    pickled: r"v1-5.ckpt: is a pickle.*convert it where you trust it: safetensors.torch.save_file",
    pickled_part: r"m/unet/diffusion_pytorch_model.bin: is a pickle.*torch.load\(IN, weights_only=True\), OUT\)",
    renamed: r"model.safetensors: is not a whole safetensors file",
    sdxl_file: r"is a single file of Stable Diffusion XL, but --config .* describes a StableDiffusionPipeline",
    flux_file: r"is a single file of FLUX.1 .schnell.; give --config, .* likely black-forest-labs/FLUX.1-schnell",
    odd_size: r"size 37x37: this model draws multiples of \d+ pixels",
    flow_for_terminal_snr: r"this model is a flow; expected a variance-preserving one",
    other_family: r"sdxl: is of the family sdxl, but the recipe's numbers .* are for sd; .* say --family sdxl to",
    file_of_another_family: r"sdxl.safetensors: is of the family sdxl, but the recipe's numbers .* are for sd; ",
    nowhere: r"nobody/nothing: is not in the local cache.*download it",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_models_are_one_line_and_leave_nothing(
    make: Callable[..., list[object]], command: Callable, models: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    model, *more = make(models, tmp_path)
    status, said = command("train", "sd15_dpo", *small(model, pairs, tmp_path / "run"), *more)
    assert status == 2, said
    assert re.search(BAD[make], said), said
    assert said.count("\n") == 1
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "run" / "policy").exists()


def test_a_gated_model_says_how_it_is_opened(
    command: Callable, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise GatedRepoError.__new__(GatedRepoError, "no")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    status, said = command("train", "sd3_dpo", *small("owner/gated", pairs, tmp_path / "run"))
    assert (status, said.count("\n")) == (2, 1)
    assert "owner/gated: is gated on the hub" in said
    assert "hf auth login" in said


# --- bad adapters, and good ones


@pytest.fixture(scope="module")
def trained(models: dict[str, Path], pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on SDXL by LoRA, with its checkpoints."""
    out = tmp_path_factory.mktemp("strangers") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["diffalign", "train", "sdxl_lora_dpo", *map(str, small(models["sdxl"], pairs, out))]
        )
        cli.main()
    return out


def test_adapters_of_another_family_or_rank(
    command: Callable, trained: Path, models: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    drawn = ("--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "drawn", "--steps", 2)
    for model, lora, what in (
        ("sd3", trained, "adapts a 'unet', but this model's denoiser is its transformer; it is of another family"),
        ("sd", trained, "which this model has not; it is of another model|features in it"),
        ("sdxl", models["sdxl"], "no such adapter file"),
    ):
        status, said = command("sample", "--model", models[model], "--lora", lora, *drawn)
        assert (status, said.count("\n")) == (2, 1), said
        assert re.search(what, said), said
    more = ("--policy.start", trained, "--policy.rank", 3)
    status, said = command("train", "sdxl_lora_dpo", *small(models["sdxl"], pairs, tmp_path / "run"), *more)
    assert (status, said.count("\n")) == (2, 1)
    assert "has rank 8, expected that of the policy, 3" in said
    assert not (tmp_path / "drawn").exists()


def test_a_run_ends_in_a_folder_with_a_card(trained: Path, models: dict[str, Path]) -> None:
    text = (trained / "policy" / "README.md").read_text()
    assert "# sdxl, aligned by DPO" in text
    assert 'pipe.load_lora_weights("…")' in text
    assert str(models["sdxl"].parent) not in text


def test_checkpoints_are_adapters_too(trained: Path, models: dict[str, Path]) -> None:
    last, policy = (weights.adapter_file(trained / name) for name in ("checkpoint-2", "policy"))
    assert last.read_bytes() == policy.read_bytes()
    assert weights.adapter_file(trained / "checkpoint-1").read_bytes() != policy.read_bytes()


def test_a_finished_run_is_pushed_when_asked(
    command: Callable, trained: Path, models: dict[str, Path], pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(weights, "push", lambda folder, name: asked.append((folder, name)))
    again = ("train", "sdxl_lora_dpo", *small(models["sdxl"], pairs, trained))
    assert command(*again)[0] == 0
    assert command(*again, "--push", "me/it")[0] == 0
    assert asked == [(trained / "policy", "me/it")]


def test_full_training_by_a_stranger(command: Callable, models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    """Its folder says how it is loaded, its checkpoints convert too, and what takes adapters says what to do."""
    run = tmp_path / "run"
    assert command("train", "sd15_dpo", *small(models["sd"], pairs, run), "--optimizer.lr", 1e-3)[0] == 0
    text = (run / "policy" / "README.md").read_text()
    assert 'pipe.unet = AutoModel.from_pretrained("…", subfolder="unet")' in text
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    drawn = ("--prompts", tmp_path / "prompts.txt", "--steps", 2)
    status, said = command("sample", "--model", models["sd"], "--lora", run, *drawn, "--out", tmp_path / "d")
    assert (status, said.count("\n")) == (2, 1)
    assert "holds weights (unet) instead of an adapter; `diffalign convert RUN --to merged" in said
    for source in (run, run / "checkpoint-2", run / "checkpoint-1"):
        assert command("convert", source, "--to", "merged", "--out", tmp_path / f"of-{source.name}")[0] == 0
    told = export._probe(backbones.load(str(models["sd"])))
    last, two, one = (
        export._output(backbones.load(str(tmp_path / f"of-{n}")), told) for n in ("run", "checkpoint-2", "checkpoint-1")
    )
    assert torch.equal(last, two)
    assert not torch.equal(last, one)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_computes_in_bfloat16(models: dict[str, Path], family: str) -> None:
    """Weights in bfloat16, the autoencoder in float32, errors in float32, and close to what float32 says."""
    wide, narrow = (backbones.load(str(models[family]), dtype=d) for d in (torch.float32, torch.bfloat16))
    assert {p.dtype for p in narrow.denoiser.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in narrow.pipe.vae.parameters()} == {torch.float32}
    x, t, told = export._probe(wide)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        said = narrow.predict(
            narrow.denoiser,
            x,
            t,
            narrow.encode_prompts(["a red circle", "a blue square"])
            | {k: v for k, v in told.items() if k in ("time_ids", "resolution", "aspect_ratio")},
        )
    assert said.shape == x.shape
    assert said.isfinite().all()
