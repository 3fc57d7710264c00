"""Files that others load: every layout is read back by diffusers itself and must give the same denoiser output."""

import json
import re
import shutil
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import safetensors.torch
import tiny
import torch
import worlds
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from safetensors import safe_open
from torch import Tensor

from diffalign import adapters, backbones, card, export, weights
from diffalign.backbones import single_file, stack
from diffalign.backbones.base import Backbone
from diffalign.policy import Policy
from diffalign.records import InputError
from diffalign.run import AdamW, Frozen, Full, LoRA, Run, to_data
from diffalign.streams import normal

LAYOUTS = {
    **{"sd": ("kohya", "comfyui", "single-file"), "sdxl": ("kohya", "comfyui", "single-file")},
    **{"sd3": ("comfyui",), "flux": ("comfyui",), "pixart": ("comfyui",), "sana": ()},
    **{"qwen_image": ("kohya", "comfyui"), "zimage": ("kohya", "comfyui"), "flux2_klein": ("comfyui",)},
}


def trained(folder: Path, out: Path, lora: LoRA | None = None, *, init_lora: str = "") -> Path:
    """An exported policy that moved away from its base; alpha is not the rank."""
    lora = lora or LoRA(rank=2, alpha=3.0)
    policy = Policy(backbones.load(str(folder)), lora, 0, reference=Frozen(), init_lora=init_lora)
    for name, parameter in policy.parameters.items():
        if "lora_B" in name:
            parameter.data = torch.from_numpy(normal("noise", 0, name, shape=tuple(parameter.shape))) * 0.3
    policy.export(out)
    return out


@pytest.fixture(scope="module")
def policies(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("policies")
    return {family: trained(models[family], place / family) for family in LAYOUTS}


@pytest.fixture(scope="module")
def wanted(models: dict[str, Path], policies: dict[str, Path]) -> dict[str, Tensor]:
    """What each policy's denoiser says, and that it is not what its base says: else an export proves nothing."""
    found = {}
    for family, policy in policies.items():
        backbone = backbones.load(str(models[family]))
        plain = output(backbone)
        backbone.load_lora(weights.adapter_file(policy))
        found[family] = output(backbone)
        assert (found[family] - plain).norm() > 0.01 * plain.norm()
    return found


def output(backbone: Backbone) -> Tensor:
    return export._output(backbone, export._probe(backbone))


def with_lora(folder: Path, adapter: Path) -> Tensor:
    backbone = backbones.load(str(folder))
    backbone.load_lora(weights.adapter_file(adapter))
    return output(backbone)


# --- adapters


@pytest.mark.parametrize("family", LAYOUTS)
def test_adapters_go_out_and_come_back(
    models: dict[str, Path], policies: dict[str, Path], wanted: dict[str, Tensor], tmp_path: Path, family: str
) -> None:
    """By our loader from each layout, and from the last one by the family's own pipeline."""
    model, backbone = str(models[family]), backbones.load(str(models[family]))
    for to in ("diffusers", *(known for known in LAYOUTS[family] if known != "single-file")):
        out = tmp_path / (to if to == "diffusers" else f"{to}.safetensors")
        export.convert(policies[family], to=to, out=out, model=model)
        backbone.load_lora(weights.adapter_file(out))
        torch.testing.assert_close(output(backbone), wanted[family], rtol=0, atol=1e-5)
        adapters.remove(backbone.denoiser)
    if family == "pixart":  # whose pipeline has no loader in diffusers
        return
    backbone.pipe.load_lora_weights(str(out))
    torch.testing.assert_close(output(backbone), wanted[family], rtol=0, atol=1e-5)


def test_kohya_goes_back_to_diffusers(
    models: dict[str, Path], policies: dict[str, Path], wanted: dict[str, Tensor], tmp_path: Path
) -> None:
    model = str(models["sdxl"])
    export.convert(policies["sdxl"], to="kohya", out=tmp_path / "k.safetensors", model=model)
    export.convert(tmp_path / "k.safetensors", to="diffusers", out=tmp_path / "d", model=model)
    torch.testing.assert_close(with_lora(models["sdxl"], tmp_path / "d"), wanted["sdxl"], rtol=0, atol=1e-5)


def test_kohya_of_flux_is_fused_and_read_by_diffusers(models: dict[str, Path], tmp_path: Path) -> None:
    """Query, key and value of a block are one matrix there; only some of them adapted, with unequal ranks, too."""
    targets = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_v", "transformer_blocks.0.ff.net.2")
    policy = trained(models["flux"], tmp_path / "policy", LoRA(rank=2, alpha=3.0, targets=targets))
    # the layout names single blocks alike, and a suffix finds those of the double ones only
    with safe_open(weights.adapter_file(policy), "pt") as file:
        assert not [k for k in file.keys() if ".single" in k]  # noqa: SIM118
    export.convert(policy, to="kohya", out=tmp_path / "k.safetensors", model=str(models["flux"]))
    names = weights.header(tmp_path / "k.safetensors")
    assert names["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"] == [96, 4]
    torch.testing.assert_close(
        with_lora(models["flux"], tmp_path / "k.safetensors"), with_lora(models["flux"], policy), rtol=0, atol=1e-5
    )


def test_kohya_of_flux_single_blocks_is_the_sum_of_its_parts() -> None:
    """linear1 stacks query, key, value and the first layer of the MLP: what changes it is theirs, stacked."""
    model = tiny.flux().transformer
    generator = torch.Generator().manual_seed(0)
    block = model.single_transformer_blocks[0]
    parts = {"attn.to_q": 2, "attn.to_v": 3, "proj_mlp": 2}
    adapter = {
        f"single_transformer_blocks.0.{name}": adapters.Factors(
            torch.randn(rank, 32, generator=generator),
            torch.randn(block.get_submodule(name).out_features, rank, generator=generator),
            1.5,
        )
        for name, rank in parts.items()
    }
    found = adapters.kohya_flux(adapter, model)
    assert len(found) == 3
    down, up = (found[f"lora_unet_single_blocks_0_linear1.lora_{side}.weight"] for side in ("down", "up"))
    change = found["lora_unet_single_blocks_0_linear1.alpha"] / down.shape[0] * up @ down
    expected = [
        1.5 / f.rank * f.up @ f.down
        if (f := adapter.get(f"single_transformer_blocks.0.{name}"))
        else torch.zeros(32, 32)
        for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    torch.testing.assert_close(change, torch.cat(expected))
    with pytest.raises(InputError, match="no place for module x_embedder"):
        adapters.kohya_flux({"x_embedder": adapter["single_transformer_blocks.0.attn.to_q"]}, model)


def test_kohya_of_flux_as_published_is_read_by_diffusers() -> None:
    """Its reader knows the widths of the published model alone; one block of each kind, without weights."""
    with torch.device("meta"):
        model = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1)
    generator = torch.Generator().manual_seed(0)
    adapter = {}
    for name, layer in model.named_modules():
        if "blocks." in name and isinstance(layer, torch.nn.Linear) and name.split("blocks.0.")[1].startswith("attn."):
            down = torch.randn(2, layer.in_features, generator=generator)
            adapter[name] = adapters.Factors(down, torch.randn(layer.out_features, 2, generator=generator), 3.0)
    assert len(adapter) == 8 + 3
    read = _convert_kohya_flux_lora_to_diffusers(adapters.kohya_flux(adapter, model))
    x = torch.randn(3072, generator=generator)
    for name, factors in adapter.items():
        down, up = (read[f"transformer.{name}.lora_{side}.weight"] for side in "AB")
        torch.testing.assert_close(up @ (down @ x), 1.5 * factors.up @ (factors.down @ x), rtol=1e-4, atol=1e-3)


def test_keys_are_those_that_the_interfaces_know(
    models: dict[str, Path], policies: dict[str, Path], tmp_path: Path
) -> None:
    block = "down_blocks_1_attentions_0_transformer_blocks_0"
    export.convert(policies["sdxl"], to="kohya", out=tmp_path / "a.safetensors", model=str(models["sdxl"]))
    names = weights.header(tmp_path / "a.safetensors")
    assert f"lora_unet_{block}_attn2_to_out_0.lora_up.weight" in names
    assert names[f"lora_unet_{block}_attn1_to_q.alpha"] == []
    assert {n.rsplit(".", 1)[1] for n in names} == {"alpha", "weight"}
    tensors = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert {float(v) for n, v in tensors.items() if n.endswith(".alpha")} == {3.0}
    export.convert(policies["sd3"], to="comfyui", out=tmp_path / "b.safetensors", model=str(models["sd3"]))
    names = weights.header(tmp_path / "b.safetensors")
    assert "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight" in names
    assert all(n.startswith("transformer.") and n.endswith("weight") for n in names)


def test_alpha_survives_in_the_metadata(policies: dict[str, Path]) -> None:
    with safe_open(weights.adapter_file(policies["sdxl"]), "pt") as file:
        told = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (told["unet.r"], told["unet.lora_alpha"]) == (2, 3.0)


def test_adapters_of_unequal_ranks_are_joined_exactly() -> None:
    generator = torch.Generator().manual_seed(0)

    def factors(rank: int, alpha: float) -> adapters.Factors:
        down, up = torch.randn(rank, 5, generator=generator), torch.randn(7, rank, generator=generator)
        return adapters.Factors(down.double(), up.double(), alpha)

    first, second = {"a": factors(2, 3.0), "b": factors(4, 4.0)}, {"a": factors(3, 1.0), "c": factors(1, 2.0)}
    both = adapters.joined(first, second)
    assert {name: f.rank for name, f in both.items()} == {"a": 5, "b": 4, "c": 1}

    def change(adapter: adapters.Adapter, name: str) -> Tensor:
        return adapter[name].alpha / adapter[name].rank * adapter[name].up @ adapter[name].down

    torch.testing.assert_close(change(both, "a"), change(first, "a") + change(second, "a"))
    torch.testing.assert_close(change(both, "b"), change(first, "b"))
    told = adapters.peft(both)[1]
    assert told["rank_pattern"].keys() == told["alpha_pattern"].keys() == {"^b", "^c"} or len(told["rank_pattern"]) == 2


# --- whole models


@pytest.mark.parametrize("family", ["sd", "sd3", "pixart", "flux2_klein"])
def test_merged_folders_stand_alone(
    models: dict[str, Path], policies: dict[str, Path], wanted: dict[str, Tensor], tmp_path: Path, family: str
) -> None:
    export.convert(policies[family], to="merged", out=tmp_path / "m", model=str(models[family]))
    torch.testing.assert_close(output(backbones.load(str(tmp_path / "m"))), wanted[family], rtol=0, atol=1e-5)
    index, before = (json.loads((p / "model_index.json").read_text()) for p in (tmp_path / "m", models[family]))
    assert {k: v for k, v in index.items() if k[0] != "_"} == {k: v for k, v in before.items() if k[0] != "_"}


@pytest.mark.parametrize("family", ["sd", "sd_v", "sdxl"])
def test_single_files_hold_the_whole_model(models: dict[str, Path], tmp_path: Path, family: str) -> None:
    backbone = backbones.load(str(models[family]))
    file = tmp_path / "model.safetensors"
    single_file.write(backbone.pipe, file)
    again = backbones.load(str(file), config=str(models[family]))
    for name, module in backbone.pipe.components.items():
        if isinstance(module, torch.nn.Module):
            state, found = module.state_dict(), again.pipe.components[name].state_dict()
            assert state.keys() == found.keys()
            assert all(torch.equal(state[k], found[k]) for k in state), name
    assert again.process == backbone.process
    assert weights.fingerprint(weights.locate(str(file), str(models[family]))) != weights.fingerprint(file)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_single_file_of_an_adapter(
    models: dict[str, Path], policies: dict[str, Path], wanted: dict[str, Tensor], tmp_path: Path, family: str
) -> None:
    file = tmp_path / "m.safetensors"
    export.convert(policies[family], to="single-file", out=file, model=str(models[family]))
    found = output(backbones.load(str(file), config=str(models[family])))
    torch.testing.assert_close(found, wanted[family], rtol=0, atol=1e-5)


def test_single_file_of_an_open_clip_text_encoder(tmp_path: Path) -> None:
    """Stable Diffusion 2.x differs from 1.x in its text encoder and in linear projections."""
    pipe = tiny.sd("v_prediction")
    pipe.register_modules(text_encoder=tiny.clip(pipe.tokenizer, act="gelu"))
    pipe.save_pretrained(tmp_path / "sd2")
    single_file.write(pipe, tmp_path / "sd2.safetensors")
    again = backbones.load(str(tmp_path / "sd2.safetensors"), config=str(tmp_path / "sd2"))
    state = pipe.text_encoder.state_dict()
    assert all(torch.equal(value, again.pipe.text_encoder.state_dict()[name]) for name, value in state.items())


def test_single_files_of_xl_say_what_they_predict(tmp_path: Path) -> None:
    """By the marks that ComfyUI and A1111 look for; a folder that says otherwise would train another model."""
    pipe, plain = tiny.sdxl("v_prediction"), tiny.sdxl()
    pipe.register_modules(
        scheduler=type(pipe.scheduler).from_config(pipe.scheduler.config, rescale_betas_zero_snr=True)
    )
    for name, one in (("v", pipe), ("plain", plain)):
        one.save_pretrained(tmp_path / name)
        single_file.write(one, tmp_path / f"{name}.safetensors")
    marks = {"v_pred", "ztsnr"}
    assert marks <= weights.header(tmp_path / "v.safetensors").keys()
    assert not marks & weights.header(tmp_path / "plain.safetensors").keys()
    again = backbones.load(str(tmp_path / "v.safetensors"), config=str(tmp_path / "v"))
    assert again.process == backbones.load(str(tmp_path / "v")).process
    assert (again.process.network, again.process.zero_terminal_snr) == ("v_prediction", True)
    with pytest.raises(
        InputError, match="is marked 'v_pred', but .* has prediction_type \"epsilon\"; expected a"
    ) as error:
        backbones.load(str(tmp_path / "v.safetensors"), config=str(tmp_path / "plain"))
    assert "\n" not in str(error.value)


REAL = {
    "sd": {
        **{"cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280)},
        "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    },
    "sdxl": {
        **{"cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "block_out_channels": (320, 640, 1280)},
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        **{"transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True},
        **{"addition_embed_type": "text_time", "addition_time_embed_dim": 256},
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.mark.parametrize(
    ("family", "count", "known"),
    [
        ("sd", 686, ("input_blocks.3.0.op.weight", "output_blocks.2.1.conv.weight", "output_blocks.5.2.conv.bias")),
        (
            "sdxl",
            1680,
            ("label_emb.0.2.bias", "input_blocks.8.1.transformer_blocks.9.attn2.to_out.0.weight", "out.2.weight")
            + (
                "output_blocks.2.2.conv.weight",
                "middle_block.1.proj_in.weight",
                "input_blocks.4.0.skip_connection.bias",
            ),
        ),
    ],
)
def test_names_of_the_real_networks(family: str, count: int, known: tuple[str, ...]) -> None:
    """686 tensors in the UNet of a Stable Diffusion 1.x file, 1680 in one of XL; without weights."""
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**REAL[family])
    names = single_file.unet_names(unet)
    assert len(set(names.values())) == len(names) == count
    assert set(known) <= set(names.values())


# --- runs


def test_a_run_says_what_it_was_trained_on(models: dict[str, Path], policies: dict[str, Path], tmp_path: Path) -> None:
    from diffalign.objectives import DPO

    place = tmp_path / "run"
    shutil.copytree(policies["sd3"], place / "policy")
    run = Run(str(models["sd3"]), DPO(beta=700.0), policy=LoRA(rank=2, alpha=3.0), optimizer=AdamW(lr=3e-4))
    (place / "run.json").write_text(json.dumps({"run": to_data(run)}))
    export.convert(place, to="diffusers", out=tmp_path / "lora")
    text = (tmp_path / "lora" / "README.md").read_text()
    for line in ("| objective.beta | 700.0 |", "| optimizer.lr | 0.0003 |", "# sd3, aligned by DPO", "- lora"):
        assert line in text
    assert str(tmp_path) not in text, "paths of the machine are nobody's business"


def test_a_fully_trained_run_is_merged(models: dict[str, Path], tmp_path: Path) -> None:
    from diffalign.objectives import DPO

    place = tmp_path / "run"
    policy = Policy(backbones.load(str(models["sd"])), Full(), 0, reference=None)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.mul_(1.05)
    policy.export(place / "policy")
    (place / "run.json").write_text(json.dumps({"run": to_data(Run(str(models["sd"]), DPO(), policy=Full()))}))
    export.convert(place, to="merged", out=tmp_path / "m")
    export.convert(place, to="single-file", out=tmp_path / "m.safetensors")
    wanted = output(policy.backbone)
    assert torch.equal(output(backbones.load(str(tmp_path / "m"))), wanted)
    assert torch.equal(output(backbones.load(str(tmp_path / "m.safetensors"), config=str(models["sd"]))), wanted)
    with pytest.raises(InputError, match="no adapter; expected --to merged or single-file"):
        export.convert(place, to="kohya", out=tmp_path / "k.safetensors")


def test_halved_weights_are_half_the_size(models: dict[str, Path], policies: dict[str, Path], tmp_path: Path) -> None:
    for dtype in ("float32", "float16"):
        export.convert(
            policies["sd"],
            to="single-file",
            out=tmp_path / f"{dtype}.safetensors",
            model=str(models["sd"]),
            dtype=dtype,
        )
    full, half = ((tmp_path / f"{d}.safetensors").stat().st_size for d in ("float32", "float16"))
    assert 0.5 < half / full < 0.6


# --- refusals


def refused(message: str, *places: Path, **options: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        export.convert(*places, **options)
    assert "\n" not in str(error.value)


def test_refusals_are_one_line_and_leave_nothing(
    models: dict[str, Path], policies: dict[str, Path], tmp_path: Path
) -> None:
    sd, sana = policies["sd"], policies["sana"]
    out, file = tmp_path / "o", tmp_path / "o.safetensors"
    refused("give --model", sd, to="kohya", out=file)
    refused("ends in .safetensors", sd, to="kohya", out=out, model=str(models["sd"]))
    refused("without .safetensors", sd, to="merged", out=file, model=str(models["sd"]))
    refused("not for sana", sana, to="single-file", out=file, model=str(models["sana"]))
    refused("knows no sana", sana, to="comfyui", out=file, model=str(models["sana"]))
    refused("diffusers reads no such file", policies["sd3"], to="kohya", out=file, model=str(models["sd3"]))
    refused("of another family", policies["sd3"], to="kohya", out=file, model=str(models["sd"]))
    refused("which this model has not", sd, to="kohya", out=file, model=str(models["sdxl"]))
    refused("only folders are pushed", sd, to="kohya", out=file, model=str(models["sd"]), push="me/it")
    (tmp_path / "there").mkdir()
    refused("exists; choose another", sd, to="merged", out=tmp_path / "there", model=str(models["sd"]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"]


def test_a_file_that_reads_back_otherwise_is_not_kept(
    models: dict[str, Path], policies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = adapters.kohya

    def wrong(adapter: adapters.Adapter, denoiser: torch.nn.Module) -> dict[str, Tensor]:
        return {name: v * 2 if name.endswith("alpha") else v for name, v in right(adapter, denoiser).items()}

    monkeypatch.setattr(backbones.SD, "kohya", staticmethod(wrong))
    refused("nothing was kept", policies["sd"], to="kohya", out=tmp_path / "k.safetensors", model=str(models["sd"]))
    assert not list(tmp_path.iterdir())


def test_kohya_files_of_another_model_are_refused(
    models: dict[str, Path], policies: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Names of a kohya file say little: what did not find its module is counted after loading."""
    export.convert(policies["sdxl"], to="kohya", out=tmp_path / "xl.safetensors", model=str(models["sdxl"]))
    with pytest.raises(InputError, match="attn2.to_k takes 80 features in it, 32 in this model") as error:
        backbones.load(str(models["sd"])).load_lora(tmp_path / "xl.safetensors")
    assert "\n" not in str(error.value)
    assert not caplog.records, "nobody else says it too"


def with_texts(kohya: Path, out: Path) -> Path:
    """A kohya file as most of those that are passed around: of the first text encoder, too."""
    found = safetensors.torch.load_file(kohya)
    for n, side in enumerate(f"self_attn_{part}_proj" for part in ("q", "k", "v", "out")):
        name = f"lora_te1_text_model_encoder_layers_0_{side}"
        found[f"{name}.lora_down.weight"] = torch.from_numpy(normal("noise", n, "down", shape=(2, 32)))
        found[f"{name}.lora_up.weight"] = torch.from_numpy(normal("noise", n, "up", shape=(32, 2)))
        found[f"{name}.alpha"] = torch.tensor(2.0)
    safetensors.torch.save_file(found, out)
    return out


def test_what_an_adapter_says_of_text_encoders_has_its_weight_too(
    models: dict[str, Path], policies: dict[str, Path], tmp_path: Path
) -> None:
    """Two halves are the whole, in the denoiser and in the text encoders; `convert` leaves nothing out silently."""
    model = str(models["sdxl"])
    export.convert(policies["sdxl"], to="kohya", out=tmp_path / "k.safetensors", model=model)
    file = with_texts(tmp_path / "k.safetensors", tmp_path / "t.safetensors")
    whole, halves, plain = (backbones.load(model) for _ in range(3))
    before = plain.encode_prompts(["a red circle"])["prompt_embeds"]
    whole.load_lora(file)
    wanted = whole.encode_prompts(["a red circle"])["prompt_embeds"]
    stack.wear(halves.denoiser, stack.read(halves, [stack.Worn(file, 0.5), stack.Worn(file, 0.5)]))
    found = halves.encode_prompts(["a red circle"])["prompt_embeds"]
    assert (found - wanted).norm() < 1e-4 * (wanted - before).norm()
    torch.testing.assert_close(output(halves), output(whole), rtol=1e-4, atol=1e-3)
    for to in ("diffusers", "merged"):
        refused("adapts a text encoder too .lora_te1", file, to=to, out=tmp_path / to, model=model)


def test_adapters_that_are_no_plain_lora_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    for name, what in {"lora_unet_x.lokr_w1": "LoKr", "lora_unet_x.hada_w1_a": "LoHa", "text.x": "no LoRA"}.items():
        safetensors.torch.save_file({name: torch.zeros(1)}, tmp_path / "x.safetensors")
        with pytest.raises(InputError, match=what):
            backbones.load(str(models["sd"])).load_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_single_files_want_their_config(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    other, example = {"sd": ("sdxl", "stable-diffusion-v1-5"), "sdxl": ("sd", "stable-diffusion-xl-base")}[name]
    file = tmp_path / "model.safetensors"
    single_file.write(backbones.load(str(models[name])).pipe, file)
    with pytest.raises(InputError, match=f"give --config.*{example}"):
        backbones.load(str(file))
    with pytest.raises(InputError, match="is a single file of .* but --config .* describes a"):
        backbones.load(str(file), config=str(models[other]))
    with pytest.raises(InputError, match="is a folder"):
        backbones.load(str(models[name]), config=str(models[name]))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        backbones.load(str(file), config=str(models[name]))


def test_a_single_files_config_may_be_a_hub_id(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but weights is fetched of it, and it is fetched for no other reason than that it was named."""
    file, place, asked = tmp_path / "model.safetensors", tmp_path / "hub", []
    whole = backbones.load(str(models["sd"]))
    single_file.write(whole.pipe, file)

    def fetch(name: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.append(name)
        files = [p.relative_to(models["sd"]).as_posix() for p in models["sd"].rglob("*") if p.is_file()]
        for kept in huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns):
            (place / kept).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(models["sd"] / kept, place / kept)
        return str(place)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    found = backbones.load(str(file), config="owner/sd")
    torch.testing.assert_close(output(found), output(whole), rtol=0, atol=1e-5)
    assert torch.equal(
        found.encode_prompts(["a red circle"])["prompt_embeds"], whole.encode_prompts(["a red circle"])["prompt_embeds"]
    )
    assert set(asked) == {"owner/sd"}
    assert not list(place.rglob("*.safetensors"))
    with pytest.raises(InputError, match="holds no model_index.json"):
        backbones.load(str(file), config=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        ("conditioner.embedders.0.model.ln_final.weight", "SDXL refiner.*no picture from text alone"),
        ("model.diffusion_model.double_stream_modulation_img.lin.weight", "FLUX.2, .*give --model black-forest-labs"),
        ("anything.else", "is no checkpoint that is known here"),
    ],
)
def test_single_files_of_other_models_are_named(tmp_path: Path, tensor: str, what: str) -> None:
    safetensors.torch.save_file({tensor: torch.zeros(2, 2)}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=what):
        backbones.load(str(tmp_path / "m.safetensors"))


def test_a_single_file_without_some_tensor_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    backbone = backbones.load(str(models["sd"]))
    state = single_file.state(backbone.pipe)
    del state["model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"]
    safetensors.torch.save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="attn1.to_q.weight as .16, 16., the file lacks it") as error:
        backbones.load(str(tmp_path / "m.safetensors"), config=str(models["sd"]))
    assert "\n" not in str(error.value)
    other = shutil.copytree(models["sd"], tmp_path / "m")
    (other / "unet" / "config.json").unlink()
    with pytest.raises(InputError, match="m/unet: is no UNet2DConditionModel"):
        backbones.load(str(tmp_path / "m.safetensors"), config=str(other))


def test_model_card_of_an_adapter_alone() -> None:
    text = card.write(card.Known({}, {}, []), model="owner/model", to="diffusers")
    assert text.startswith("---\nbase_model: owner/model\n")
    assert 'from_pretrained("owner/model")' in text
    assert "## Training" not in text
    assert "## Pictures" not in text
    text = card.write(card.Known({}, {}, []), model="owner/model", to="unloaded")
    assert "load_lora_weights" not in text
    assert "diffalign convert … --model owner/model --to merged" in text
    text = card.write(card.Known({}, {}, []), model="flux1-dev.safetensors", to="diffusers")
    assert 'from_pretrained("…")  # flux1-dev.safetensors, as a folder' in text
    assert "base_model" not in text, "the hub knows it by another name"


def test_model_card_with_win_rates_and_pictures(
    models: dict[str, Path], policies: dict[str, Path], tmp_path: Path
) -> None:
    worlds.images(tmp_path / "drawn")
    rates = {"win_rate": 0.625, "win_rate_low": 0.5, "win_rate_high": 0.75}
    (tmp_path / "compare.json").write_text(json.dumps({"scorers": {"gold": rates}, "prompts": 60}))
    options = {"model": str(models["sd"]), "compared": tmp_path, "gallery": tmp_path / "drawn"}
    export.convert(policies["sd"], to="diffusers", out=tmp_path / "lora", **options)
    text = (tmp_path / "lora" / "README.md").read_text()
    assert "| gold | 62.5% | 50.0% to 75.0% |" in text
    assert "over 60 prompts" in text
    shown = re.findall(r"!\[(.*)\]\((.*)\)", text)
    assert len(shown) == 8
    assert all((tmp_path / "lora" / file).read_bytes().startswith(b"\x89PNG") for _, file in shown)
    assert {prompt for prompt, _ in shown} <= set(worlds.TEXTS)
    options |= {"compared": tmp_path / "drawn"}
    refused("holds no compare.json", policies["sd"], to="merged", out=tmp_path / "m", **options)


def test_what_the_hub_refuses_is_still_there(
    models: dict[str, Path], policies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network the hub refuses everything; with one it is asked for a repository and given the folder."""
    refused(
        "is written, but me/it does not take it",
        *(policies["sd"],), to="diffusers", out=tmp_path / "a", model=str(models["sd"]), push="me/it",
    )  # fmt: skip
    assert (tmp_path / "a" / "README.md").is_file()
    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda _, name, **more: asked.append((name, more)))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda _, **more: asked.append(more))
    weights.push(tmp_path / "a", "me/it")
    made = {"exist_ok": True, "repo_type": "model", "private": False}
    assert asked == [("me/it", made), {"repo_id": "me/it", "folder_path": tmp_path / "a", "repo_type": "model"}]
