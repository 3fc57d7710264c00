"""Single files of Stable Diffusion 3 and FLUX.1: what is read from one is what lies in the folder, bit for bit."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import pytest
import tiny
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffalign import backbones, weights
from diffalign.backbones import mmdit_file
from diffalign.backbones.base import Backbone
from diffalign.records import InputError
from diffalign.streams import normal

PIPELINES = {"flux": tiny.flux, "flux_schnell": tiny.flux_schnell, "sd3": tiny.sd3, "sd35": tiny.sd35}
DENOISER = "model.diffusion_model."


@dataclass(frozen=True)
class Files:
    """One model as a whole folder, its folder without weights, a whole file, and a file of the denoiser alone."""

    folder: Path
    config: Path
    whole: Path
    alone: Path

    def changed(self, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], out: Path) -> Path:
        save_file(change(load_file(self.whole)), out)
        return out


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    place, found = tmp_path_factory.mktemp("files"), {}
    for name, make in PIPELINES.items():
        pipe, one = (
            make(),
            Files(*(place / f"{name}{end}" for end in ("", "-config", ".safetensors", "-t.safetensors"))),
        )
        _stirred(pipe)
        pipe.save_pretrained(one.folder)
        shutil.copytree(one.folder, one.config, ignore=shutil.ignore_patterns("*.safetensors"))
        mmdit_file.write(pipe, one.whole)
        state = load_file(one.whole)
        save_file({k.removeprefix(DENOISER): v for k, v in state.items() if k.startswith(DENOISER)}, one.alone)
        found[name] = one
    return found


def _stirred(pipe: diffusers.DiffusionPipeline) -> None:
    """Norms are ones and biases zeros at first, so that one of them in the place of another would not be seen."""
    for part, module in pipe.components.items():
        for name, value in module.named_parameters() if isinstance(module, nn.Module) else ():
            value.data.add_(0.05 * torch.from_numpy(normal("noise", 0, part, name, shape=tuple(value.shape))))
    if isinstance(pipe, diffusers.StableDiffusion3Pipeline):
        pipe.text_encoder.text_projection.weight.data.copy_(torch.eye(32))


def same(found: Backbone, wanted: Backbone) -> None:
    """Every tensor, buffers that are not saved too, and what is made of them."""
    for part, module in wanted.pipe.components.items():
        if not isinstance(module, nn.Module):
            continue
        other = found.pipe.components[part]
        assert type(other) is type(module)
        for kind in (nn.Module.named_parameters, nn.Module.named_buffers):
            theirs = dict(kind(other))
            assert theirs.keys() == dict(kind(module)).keys(), part
            for name, value in kind(module):
                assert torch.equal(theirs[name], value), f"{part}: {name}"
                assert (theirs[name].dtype, theirs[name].requires_grad) == (value.dtype, False), f"{part}: {name}"
    pixels = torch.from_numpy(normal("noise", 0, shape=(2, 3, 32, 32))).clamp(-1, 1)
    latents = wanted.encode_images(pixels)
    texts = ["a red circle", "a large blue square"]
    told = wanted.encode_prompts(texts)
    t, dtype = torch.tensor([300.0, 700.0]), wanted.denoiser.dtype
    with torch.no_grad():
        both = [b.predict(b.denoiser, latents.to(dtype), t, told) for b in (found, wanted)]
    assert torch.equal(*both)
    assert torch.equal(found.encode_images(pixels), latents)
    assert torch.equal(found.decode_latents(latents), wanted.decode_latents(latents))
    assert all(
        torch.equal(v, told[k]) for k, v in found.encode_prompts(["a red circle", "a large blue square"]).items()
    )


@pytest.mark.parametrize("name", ["flux", "sd3", "sd35"])
def test_a_whole_file_is_the_folder(files: dict[str, Files], name: str) -> None:
    """With a configuration that holds no weights, so that nothing else can have been read."""
    one = files[name]
    same(backbones.load(str(one.whole), config=str(one.config)), backbones.load(str(one.folder)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_whole_file_in_another_dtype(files: dict[str, Files], dtype: torch.dtype) -> None:
    """The autoencoder stays in float32, and in float16 some of T5 does."""
    one = files["flux"]
    found = backbones.load(str(one.whole), config=str(one.config), dtype=dtype)
    same(found, backbones.load(str(one.folder), dtype=dtype))
    assert found.pipe.vae.dtype == torch.float32
    kept = found.pipe.text_encoder_2.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype
    assert kept == (torch.float32 if dtype == torch.float16 else dtype)


def test_a_denoiser_alone_takes_the_rest_from_the_folder(files: dict[str, Files], tmp_path: Path) -> None:
    one, other = files["sd35"], tmp_path / "folder"
    shutil.copytree(one.folder, other, ignore=shutil.ignore_patterns("diffusion_pytorch_model.safetensors"))
    shutil.copytree(one.folder / "vae", other / "vae", dirs_exist_ok=True)
    same(backbones.load(str(one.alone), config=str(other)), backbones.load(str(one.folder)))


def test_without_encoders_nothing_but_the_denoiser_is_wanted(files: dict[str, Files]) -> None:
    one = files["flux"]
    for file in (one.whole, one.alone):
        found = backbones.load(str(file), config=str(one.config), encoders=False)
        wanted = backbones.load(str(one.folder)).denoiser.state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in found.denoiser.state_dict().items())
        assert {p.device.type for p in found.pipe.text_encoder.parameters()} == {"meta"}


# --- the names, against others'


def test_diffusers_reads_what_is_written_of_sd3(files: dict[str, Files]) -> None:
    one = files["sd35"]
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(one.folder, **tiny.absent(one.folder))
    told = {"config": str(one.config), "local_files_only": True, **tiny.absent(one.folder)}
    found = diffusers.StableDiffusion3Pipeline.from_single_file(str(one.whole), **told)
    for part, module in pipe.components.items():
        if isinstance(module, nn.Module):
            theirs, state = found.components[part].state_dict(), module.state_dict()
            names = [name for ours in mmdit_file.layout(module).values() for name in ours]
            assert all(torch.equal(theirs[name], state[name]) for name in names), part


def test_files_of_sd3_have_no_projection_of_their_first_encoder(files: dict[str, Files], tmp_path: Path) -> None:
    """ComfyUI and diffusers read none, and some files have CLIP's own there, others nothing."""
    one, name = files["sd3"], mmdit_file.UNPROJECTED
    wanted = backbones.load(str(one.folder)).encode_prompts(["a red circle"])["pooled"]
    for value in ({}, {name: torch.ones(32, 32)}):
        change = lambda state, v=value: {k: t for k, t in state.items() if k != name} | v  # noqa: E731
        file = one.changed(change, tmp_path / "m.safetensors")
        found = backbones.load(str(file), config=str(one.config)).encode_prompts(["a red circle"])["pooled"]
        assert torch.equal(found, wanted)
    pipe = tiny.sd3()
    pipe.text_encoder.text_projection.weight.data.add_(1)
    with pytest.raises(InputError, match="text_encoder: has a projection, of which a single file"):
        mmdit_file.write(pipe, tmp_path / "n.safetensors")


@pytest.mark.parametrize("guided", [True, False])
def test_diffusers_reads_what_is_written_of_flux(guided: bool) -> None:
    """Its converter knows only the published widths: one block of each kind, in rows of those and in two columns."""
    with torch.device("meta"):
        part = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=guided)
    state = {
        name: torch.from_numpy(normal("noise", 0, name, shape=(*value.shape[:1], 2)[: value.ndim]))
        for name, value in part.state_dict().items()
    }
    theirs = mmdit_file.stacked(part, state)
    found = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(dict(theirs))
    assert found.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in found.items())


def test_diffusers_reads_the_autoencoder(files: dict[str, Files]) -> None:
    found = single_file_utils.convert_ldm_vae_checkpoint(load_file(files["flux"].whole), tiny.flux().vae.config)
    wanted = load_file(files["flux"].folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


DEV = (
    *("guidance_in.out_layer.bias", "double_blocks.18.txt_attn.norm.key_norm.scale", "single_blocks.37.linear1.bias"),
    *("double_blocks.0.img_mlp.2.weight", "single_blocks.0.modulation.lin.weight", "final_layer.linear.weight"),
)
MEDIUM = (
    *("pos_embed", "x_embedder.proj.weight", "joint_blocks.12.x_block.attn2.ln_k.weight", "y_embedder.mlp.2.bias"),
    *("joint_blocks.23.context_block.adaLN_modulation.1.weight", "joint_blocks.0.context_block.mlp.fc2.bias"),
)


@pytest.mark.parametrize(
    ("part", "count", "known"),
    [
        ({"guidance_embeds": True}, 780, DEV),
        ({"num_layers": 24, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"}, 665, MEDIUM),
    ],
    ids=["FLUX.1-dev", "3.5-medium"],
)
def test_names_of_the_real_networks(part: dict[str, object], count: int, known: tuple[str, ...]) -> None:
    """780 tensors in flux1-dev.safetensors; without weights."""
    kind = diffusers.FluxTransformer2DModel if "guidance_embeds" in part else diffusers.SD3Transformer2DModel
    with torch.device("meta"):
        module = kind(**part)
    names = mmdit_file.layout(module)
    assert len(names) == count
    assert set(known) <= names.keys()
    assert sorted(name for ours in names.values() for name in ours) == sorted(module.state_dict())


# --- 8 bits


def eighths(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.to(torch.float8_e4m3fn) if k.startswith(DENOISER) else v for k, v in state.items()}


def test_weights_in_8_bits_are_widened(files: dict[str, Files], tmp_path: Path) -> None:
    one = files["flux"]
    file = one.changed(eighths, tmp_path / "8.safetensors")
    found = backbones.load(str(file), config=str(one.config)).denoiser.state_dict()
    for name, value in backbones.load(str(one.folder)).denoiser.state_dict().items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value.to(torch.float8_e4m3fn).float()), name


@pytest.mark.parametrize("scale", mmdit_file.SCALES)
def test_weights_in_8_bits_have_their_scale(files: dict[str, Files], tmp_path: Path, scale: str) -> None:
    """W = scale * stored, of each of the three matrices that a file stacks."""
    one, matrix = files["flux"], f"{DENOISER}double_blocks.0.img_attn.qkv"

    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        stored = (state[f"{matrix}.weight"] / 0.125).to(torch.float8_e4m3fn)
        beside = {f"{matrix}.{scale}": torch.tensor(0.125), f"{matrix}.scale_input": torch.tensor(1.0)}
        return state | {f"{matrix}.weight": stored, **beside, f"{DENOISER}scaled_fp8": torch.zeros(2)}

    file = one.changed(change, tmp_path / "8.safetensors")
    found = backbones.load(str(file), config=str(one.config)).denoiser.state_dict()
    for name, value in backbones.load(str(one.folder)).denoiser.state_dict().items():
        stacked = name.endswith(("0.attn.to_q.weight", "0.attn.to_k.weight", "0.attn.to_v.weight"))
        rounded = (value / 0.125).to(torch.float8_e4m3fn).float() * 0.125
        assert torch.equal(found[name], rounded if stacked and "single" not in name else value), name


# --- refusals


def refused(message: str, file: Path, config: Path | str = "") -> None:
    with pytest.raises(InputError, match=message) as error:
        backbones.load(str(file), config=str(config))
    assert "\n" not in str(error.value)


def test_files_are_refused_by_what_they_hold(files: dict[str, Files], tmp_path: Path) -> None:
    flux, schnell, sd3, sd35 = files.values()
    refused(r"is a single file of FLUX.1 \[dev\]; give --config.*likely black-forest-labs/FLUX.1-dev", flux.whole)
    refused(r"of Stable Diffusion 3; give --config.*stable-diffusion-3-medium-diffusers", sd3.alone)
    refused(r"of SD 3.5 medium, but --config .* describes a FluxPipeline; expected a Stable", sd35.whole, flux.config)
    refused(r"wants tensor .*guidance_in.in_layer.weight as .32, 256., the file lacks it", schnell.whole, flux.config)
    refused(r"holds tensor .*guidance_in.in_layer.\w+, which the transformer of .* has not", flux.alone, schnell.config)
    refused(
        r"wants .*context_embedder.weight as .32, 64., the file has it as .32, 80.",
        sd35.whole,
        sd3.config,
    )
    parts = "text_encoder, text_encoder_2, text_encoder_3, vae"
    refused(rf"holds no {parts}, and --config .* null for text_encoder_3", sd35.alone, sd35.config)
    fetch = "hf download black-forest-labs/FLUX.1-dev text_encoder/ text_encoder_2/ vae/"
    refused(rf"no weights of that; fetch them: `{fetch} --local-dir .*flux-config`", flux.alone, flux.config)
    cached = tmp_path / "models--owner--flux" / "snapshots" / "0a1b"
    shutil.copytree(flux.config, cached)
    refused("owner/flux text_encoder/ text_encoder_2/ vae/ --revision 0a1b`", flux.alone, cached)
    shutil.copytree(flux.folder, tmp_path / "short")
    file = tmp_path / "short" / "text_encoder_2" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refused("text_encoder_2/model.safetensors: is not a whole safetensors file", flux.alone, tmp_path / "short")


def test_files_without_some_tensor_are_refused(files: dict[str, Files], tmp_path: Path) -> None:
    one = files["flux"]
    for name in ("single_blocks.0.linear1.bias", "vae.decoder.conv_in.weight"):
        name = DENOISER + name if name.startswith("single") else name
        file = one.changed(lambda state, n=name: {k: v for k, v in state.items() if k != n}, tmp_path / "m.safetensors")
        refused(f"wants tensor {name} as .*, the file lacks it", file, one.config)


@pytest.mark.parametrize(
    ("extra", "value", "said"),
    [
        ("scale_weight", torch.zeros(96, 1), r"stored as float8_e4m3fn with a scale of shape \[96, 1\]; expected"),
        ("scale_input", torch.zeros(1), r"is stored as I8; expected floating point"),
    ],
)
def test_weights_in_other_few_bits_are_refused(
    files: dict[str, Files], tmp_path: Path, extra: str, value: Tensor, said: str
) -> None:
    one, matrix = files["flux"], f"{DENOISER}double_blocks.0.img_attn.qkv"
    kind = torch.int8 if "I8" in said else torch.float8_e4m3fn

    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return state | {f"{matrix}.weight": state[f"{matrix}.weight"].to(kind), f"{matrix}.{extra}": value}

    refused(said, one.changed(change, tmp_path / "m.safetensors"), one.config)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ("decoder.conv_in.weight", "holds an autoencoder alone; give a whole checkpoint"),
        ("text_model.embeddings.token_embedding.weight", "holds a CLIP text encoder alone"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "holds a T5 text encoder alone"),
        ("model.diffusion_model.input_blocks.0.0.weight", "holds a UNet without its text encoder alone"),
        ("transformer_blocks.0.attn.to_q.weight", "holds a denoiser in diffusers' layout alone; give .* model folder"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "is an adapter; give as --model what it was"),
        (
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
            "is an adapter; give as --model what it was",
        ),
        ("distilled_guidance_layer.in_proj.weight", "is a single file of Chroma, which is not read as such"),
    ],
)
def test_files_of_something_else_are_named(files: dict[str, Files], tmp_path: Path, tensor: str, said: str) -> None:
    save_file({tensor: torch.zeros(2, 2)}, tmp_path / "m.safetensors")
    refused(said, tmp_path / "m.safetensors", files["flux"].config)


def test_a_whole_file_of_an_unknown_family_is_not_taken_for_one_of_its_parts(
    files: dict[str, Files], tmp_path: Path
) -> None:
    names = ("model.diffusion_model.layers.0.attention.qkv.weight", "vae.decoder.conv_in.weight")
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "m.safetensors")
    refused("is no checkpoint that is known here", tmp_path / "m.safetensors", files["flux"].config)


def test_damaged_files_and_other_formats(files: dict[str, Files], tmp_path: Path) -> None:
    one = files["flux"]
    (tmp_path / "short.safetensors").write_bytes(one.whole.read_bytes()[:-100])
    refused("is not a whole safetensors file", tmp_path / "short.safetensors", one.config)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    refused(
        "m.gguf: is a GGUF file, of weights in few bits; give the .safetensors file", tmp_path / "m.gguf", one.config
    )
    other = shutil.copytree(one.config, tmp_path / "m")
    (other / "transformer" / "config.json").unlink()
    refused("m/transformer: is no FluxTransformer2DModel", one.whole, other)
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k != "transformer"}))
    refused("m/model_index.json: names no transformer; copy the whole folder", one.whole, other)


def test_reading_is_into_memory_of_its_own(files: dict[str, Files]) -> None:
    one = files["sd3"]
    found = weights.places_in(one.whole)
    state = load_file(one.whole)
    assert all(torch.equal(weights.read(one.whole, place), state[name]) for name, place in found.items())
