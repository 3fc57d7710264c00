"""Every public judge's number, computed a second time from its published tensors by other means."""

import hashlib
import json
import math
import pickle
import re
from pathlib import Path

import numpy as np
import open_clip
import PIL.Image
import pytest
import safetensors.torch
import tiny
import tiny_scorers
import torch
import torch.nn.functional as F
import worlds
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from transformers import CLIPModel

from diffalign import scorers
from diffalign.records import InputError
from diffalign.scorers import checkpoints, hps, mps, pixels, tokens
from diffalign.scorers.dimensions import open_tower

TEXTS = ["a red circle", "the cat’s “blue” square", "", "word " * 60]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[PIL.Image.Image]:
    place, sizes = tmp_path_factory.mktemp("pictures"), [(40, 40), (50, 33), (24, 61), (77, 100)]
    for n, size in enumerate(sizes):
        (place / f"{n}.png").write_bytes(worlds.png(n, size))
    return [PIL.Image.open(place / f"{n}.png").convert("RGB") for n in range(len(sizes))]


def official(size: int) -> transforms.Compose:
    """OpenAI's transform."""
    return transforms.Compose([
        transforms.Resize(size, interpolation=InterpolationMode.BICUBIC), transforms.CenterCrop(size),
        transforms.ToTensor(), transforms.Normalize(pixels.CLIP_MEAN, pixels.CLIP_STD),
    ])  # fmt: skip


# --- towers


def test_pickscore_is_the_models_own_logit(tmp_path: Path, pictures: list[PIL.Image.Image]) -> None:
    place = tiny_scorers.clip_folder(tmp_path / "pick", seed=3)
    model = CLIPModel.from_pretrained(place).eval()
    ids = tiny_scorers.clip_tokenizer()(TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    seen = torch.stack([pixels.Cropped(24, floor=True)(p) for p in pictures])
    with torch.no_grad():
        wanted = model(**ids, pixel_values=seen).logits_per_image.diagonal()
    found = scorers.load(f"pickscore={place}")(pictures, TEXTS)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
    assert np.abs(found).max() <= math.exp(4.0) + 1e-3


@pytest.mark.parametrize("eos", [2, 49407])
def test_clipscore_and_its_original(tmp_path: Path, pictures: list[PIL.Image.Image], eos: int) -> None:
    place = tiny_scorers.clip_folder(tmp_path / "openai", seed=4, act="quick_gelu", eos=eos)
    model = CLIPModel.from_pretrained(place).eval()
    seen = torch.stack([official(24)(p) for p in pictures])
    said = [open_clip.tokenize(TEXTS), open_clip.tokenize(["A photo depicts " + t for t in TEXTS])]
    with torch.no_grad():
        made = [model(input_ids=s, pixel_values=seen) for s in said]
    plain, prefixed = ((m.image_embeds * m.text_embeds).sum(-1).numpy() for m in made)
    np.testing.assert_allclose(scorers.load(f"clipscore={place}")(pictures, TEXTS), plain, atol=1e-6)
    found = scorers.load(f"clipscore_original={place}")(pictures, TEXTS)
    np.testing.assert_allclose(found, 2.5 * np.maximum(prefixed, 0), atol=3e-6)
    assert (found >= 0).all()


def test_hps_is_open_clips_cosine(tmp_path: Path, pictures: list[PIL.Image.Image]) -> None:
    path = tiny_scorers.hps_file(tmp_path / "HPS_v2_compressed.pt", seed=5)
    model = open_clip.CLIP(**tiny_scorers.HPS_SIZES).eval()
    model.load_state_dict({k: v.float() for k, v in torch.load(path, weights_only=True)["state_dict"].items()})
    for name, antialias in (("hpsv2", True), ("hpsv2_aliased", False)):
        seen = torch.stack([pixels.Padded(28, antialias=antialias)(p) for p in pictures])
        with torch.no_grad():
            a, b = model.encode_image(seen).double(), model.encode_text(open_clip.tokenize(TEXTS)).double()
        found = scorers.load(f"{name}={path}")(pictures, TEXTS)
        np.testing.assert_allclose(found, F.cosine_similarity(a, b), atol=1e-6)


def test_hps_sizes_are_those_of_vit_h_14() -> None:
    wanted = open_clip.get_model_config("ViT-H-14")
    with torch.device("meta"):
        state = open_clip.CLIP(**wanted).state_dict()
    assert len(state) == 686
    found = hps.architecture(state, Path("x.pt"))
    assert found["embed_dim"] == wanted["embed_dim"]
    assert found["vision_cfg"] == wanted["vision_cfg"]
    assert found["text_cfg"] == wanted["text_cfg"]


# --- ImageReward, from the published names by functions of torch only


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Heads of 64; mask (batch, keys) of what may be looked at."""
    q, k, v = (x.unflatten(-1, (-1, 64)).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.transpose(-1, -2) / 8
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None].bool(), -torch.inf)
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(-2)


def blip(s: dict[str, torch.Tensor], image: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The raw ImageReward of images (n, 3, 24, 24) and tokens (n, 35)."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, s[f"{name}.weight"], s[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps)

    v, t = "blip.visual_encoder", "blip.text_encoder"
    x = F.conv2d(image, s[f"{v}.patch_embed.proj.weight"], s[f"{v}.patch_embed.proj.bias"], stride=8)
    x = torch.cat([s[f"{v}.cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1) + s[f"{v}.pos_embed"]
    for i in range(2):
        b = f"{v}.blocks.{i}"
        q, k, w = linear(norm(x, f"{b}.norm1", 1e-6), f"{b}.attn.qkv").chunk(3, -1)
        x = x + linear(attention(q, k, w, None), f"{b}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{b}.norm2", 1e-6), f"{b}.mlp.fc1")), f"{b}.mlp.fc2")
    seen = norm(x, f"{v}.norm", 1e-6)
    e = f"{t}.embeddings"
    h = s[f"{e}.word_embeddings.weight"][ids] + s[f"{e}.position_embeddings.weight"][: ids.shape[1]]
    h = norm(h, f"{e}.LayerNorm", 1e-12)
    for i in range(2):
        for kind, keys, m in (("attention", None, mask), ("crossattention", seen, None)):
            a = f"{t}.encoder.layer.{i}.{kind}"
            keys = h if keys is None else keys
            q = linear(h, f"{a}.self.query")
            found = attention(q, linear(keys, f"{a}.self.key"), linear(keys, f"{a}.self.value"), m)
            h = norm(linear(found, f"{a}.output.dense") + h, f"{a}.output.LayerNorm", 1e-12)
        b = f"{t}.encoder.layer.{i}"
        wide = F.gelu(linear(h, f"{b}.intermediate.dense"))
        h = norm(linear(wide, f"{b}.output.dense") + h, f"{b}.output.LayerNorm", 1e-12)
    out = h[:, 0]
    for i in (0, 2, 4, 6, 7):
        out = linear(out, f"mlp.layers.{i}")
    return out[:, 0]


def test_imagereward_from_its_published_tensors(tmp_path: Path, pictures: list[PIL.Image.Image]) -> None:
    place = tiny_scorers.imagereward_folder(tmp_path / "reward", seed=6)
    state = {k: v.double() if v.is_floating_point() else v for k, v in tiny_scorers.imagereward_state(6).items()}
    seen = torch.stack([official(24)(p) for p in pictures]).double()
    said = tokens.bert(place, 35)(TEXTS)
    wanted = (blip(state, seen, said["input_ids"], said["attention_mask"]) - 0.16717362830052426) / 1.0333394966054072
    for name in (place, place / "ImageReward.pt", f"{place / 'ImageReward.pt'},{place}"):
        found = scorers.load(f"imagereward={name}")(pictures, TEXTS)
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    assert np.ptp(found) > 1e-2


# --- heads


def turned(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions as complex numbers: feature i and i + 32 are one, turned by position · 10000^(-i/32)."""
    speed = 10000 ** (-torch.arange(32).double() / 32)
    angle = torch.arange(len(x)).double()[:, None] * speed
    y = torch.complex(x[:, :32], x[:, 32:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([y.real, y.imag], 1)


def crossed(s: dict[str, torch.Tensor], x: torch.Tensor, words: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
    """MPS's layers from their tensors, one image, head by head, in float64."""
    silu, width = torch.nn.functional.silu, tiny_scorers.MPS_WIDTH

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * s[f"{name}.norm.gamma"]

    def gated(x: torch.Tensor) -> torch.Tensor:
        return x[:, : 4 * width] * silu(x[:, 4 * width :])

    for i in range(2):
        look, think = (f"cross_model.layers.{i}.{n}.fn" for n in (0, 1))
        y = norm(x, look)
        k, v = (words[heard] @ s[f"{look}.to_kv.weight"].T).split(64, 1)
        q = (y @ s[f"{look}.to_q.weight"].T).split(64, 1)
        found = torch.cat([(head @ k.T / 8).softmax(1) @ v for head in q], 1)
        x = (
            x
            + found @ s[f"{look}.to_out.weight"].T
            + gated(y @ s[f"{look}.ff.0.weight"].T) @ s[f"{look}.ff.2.weight"].T
        )
        y = norm(x, think) @ s[f"{think}.fused_attn_ff_proj.weight"].T
        *q, k, v = y[:, : width + 128].split(64, 1)
        found = torch.cat([(turned(head) @ turned(k).T / 8).softmax(1) @ v for head in q], 1)
        x = x + found @ s[f"{think}.attn_out.weight"].T + gated(y[:, width + 128 :]) @ s[f"{think}.ff_out.1.weight"].T
    return x


@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_mps_from_its_published_tensors(tmp_path: Path, pictures: list[PIL.Image.Image], threshold: float) -> None:
    folder = tiny_scorers.mps_folder(tmp_path)
    state = {k: v.double() for k, v in safetensors.torch.load_file(folder / "model.safetensors").items()}
    judge = mps.Mps(folder / "model.safetensors", folder, threshold)
    texts, clip = tiny_scorers.TEXTS[: len(pictures)], judge.model
    ids = tiny_scorers.clip_tokenizer()([*texts, mps.CONDITION], padding="max_length", truncation=True, max_length=77)
    with torch.no_grad():
        said = clip.text_model(torch.tensor(ids["input_ids"]))
        words, whole = (clip.text_projection(x).double() for x in (said.last_hidden_state, said.pooler_output))
        seen = torch.stack([pixels.Cropped(24, floor=True)(p) for p in pictures])
        seen = clip.visual_projection(clip.vision_model(seen).last_hidden_state).double()
    wanted, kept = [], []
    for n in range(len(texts)):
        likeness = (words[n] @ words[-1].T).max(1).values
        kept.append(likeness / likeness.max() > threshold)
        looked = crossed(state, seen[n], words[n], kept[-1])[0]
        wanted.append(float(np.exp(4) * torch.cosine_similarity(looked, whole[n], dim=0)))
    assert torch.stack(kept).all() == (threshold == 0.3)
    np.testing.assert_allclose(judge(pictures, texts), wanted, rtol=1e-4, atol=1e-4)


def test_mps_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    folder = tiny_scorers.mps_folder(tmp_path)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    for change, said in (
        ({"other": torch.zeros(1)}, r"1 not known \(other\)"),
        ({"cross_model.layers.0.0.fn.to_q.weight": None}, r"1 missing \(cross_model.layers.0.0.fn.to_q.weight\)"),
        ({"model.text_projection.weight": None}, r": 1 missing \(model.text_projection.weight\)$"),
        (
            {"other": torch.zeros(1), "model.text_projection.weight": None},
            r"1 missing \(model.text_projection.weight\); 1 not known \(other\)$",
        ),
        (
            {
                "a": torch.zeros(1),
                "model.b": torch.zeros(1),
                "cross_model.c": torch.zeros(1),
                "model.logit_scale": None,
                "cross_model.layers.1.0.fn.to_q.weight": None,
            },
            r"2 missing \(model.logit_scale, cross_model.layers.1.0.fn.to_q.weight\); "
            r"3 not known \(a, cross_model.c, model.b\)$",
        ),
        (
            {"model.visual_projection.weight": torch.zeros(3)},
            r"1 of another shape \(model.visual_projection.weight \[3\]",
        ),
    ):
        changed = {k: v for k, v in (state | change).items() if v is not None}
        tiny_scorers.save_safely(changed, folder / "model.safetensors")
        with pytest.raises(InputError, match=said):
            _ = scorers.load(f"mps={folder}").function


def test_aesthetic_is_the_head_on_a_normal_embedding(tmp_path: Path, pictures: list[PIL.Image.Image]) -> None:
    tower = tiny_scorers.clip_folder(tmp_path / "openai", seed=7, act="quick_gelu")
    head = tiny_scorers.head_file(tmp_path / "head.pth", 16)
    state = torch.load(head, weights_only=True)
    model = CLIPModel.from_pretrained(tower).eval()
    seen = torch.stack([official(24)(p) for p in pictures])
    with torch.no_grad():
        x = model(input_ids=open_clip.tokenize(TEXTS), pixel_values=seen).image_embeds
    for i in (0, 2, 4, 6, 7):
        x = F.linear(x, state[f"layers.{i}.weight"], state[f"layers.{i}.bias"])
    found = scorers.load(f"aesthetic={head},{tower}")(pictures, TEXTS)
    np.testing.assert_allclose(found, x[:, 0], rtol=1e-5, atol=1e-5)


def test_aesthetic_v2_5_is_the_head_on_siglips_normal_embedding(
    tmp_path: Path, pictures: list[PIL.Image.Image]
) -> None:
    from transformers import SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tower = tiny_scorers.siglip_folder(tmp_path / "siglip", seed=8)
    head = tiny_scorers.head_file(tmp_path / "head.pth", 32, "scoring_head.")
    state = torch.load(head, weights_only=True)
    model = SiglipModel.from_pretrained(tower).eval()
    processor = SiglipImageProcessorPil(size={"height": 24, "width": 24})
    seen = torch.stack([torch.as_tensor(np.asarray(processor(p)["pixel_values"][0])) for p in pictures])
    with torch.no_grad():
        x = F.normalize(model.vision_model(seen).pooler_output, dim=-1)
    for i in (0, 2, 4, 6, 7):
        x = F.linear(x, state[f"scoring_head.layers.{i}.weight"], state[f"scoring_head.layers.{i}.bias"])
    found = scorers.load(f"aesthetic_v2.5={head},{tower}")(pictures, TEXTS)
    np.testing.assert_allclose(found, x[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("resample", [2, 3])
def test_siglips_towers_are_transformers(tmp_path: Path, pictures: list[PIL.Image.Image], resample: int) -> None:
    from transformers import SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    words = tiny.t5_tokenizer()
    folder = tiny_scorers.siglip_folder(tmp_path / "siglip", seed=8, tokenizer=words, resample=resample)
    model, processor = SiglipModel.from_pretrained(folder).eval(), SiglipImageProcessorPil.from_pretrained(folder)
    texts = ["a red circle", "the blue square", "", "ein haus", "word " * 50 + "house", "a red"]
    ids = words(texts, padding="max_length", truncation=True, max_length=64, return_tensors="pt")["input_ids"]
    seen = torch.stack([torch.as_tensor(np.asarray(processor(p)["pixel_values"][0])) for p in pictures])
    with torch.no_grad():
        made = model(input_ids=ids, pixel_values=seen)
    tower = open_tower(folder)
    assert tower.scale == pytest.approx(math.exp(4.0))
    with torch.no_grad():
        looked = tower.see(torch.stack([tower.preprocess(p) for p in pictures]))
        read = tower.read(texts)
    torch.testing.assert_close(F.normalize(looked, dim=-1), made.image_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(F.normalize(read, dim=-1), made.text_embeds, rtol=1e-5, atol=1e-5)


def test_towers_that_are_none(tmp_path: Path) -> None:
    folder = tiny_scorers.siglip_folder(tmp_path / "siglip", tokenizer=tiny.t5_tokenizer())
    said = {name: json.loads((folder / name).read_text()) for name in ("config.json", "preprocessor_config.json")}
    for name, change, wanted in (
        (
            "config.json",
            {"model_type": "siglip2"},
            r"siglip: is a siglip2, expected a CLIP or SigLIP in transformers' layout",
        ),
        (
            "preprocessor_config.json",
            {"resample": 1},
            r"preprocessor_config.json: resample 1, expected 2 \(bilinear\) or 3",
        ),
        ("preprocessor_config.json", {"do_normalize": False}, r"rescaled by 1/255 and normalised"),
        ("preprocessor_config.json", {"rescale_factor": 1 / 127.5}, r"rescaled by 1/255 and normalised"),
        ("preprocessor_config.json", {"image_std": [0, 0, 0]}, r"rescaled by 1/255 and normalised"),
        ("preprocessor_config.json", {"image_mean": 1}, r"is no configuration of an image processor"),
    ):
        (folder / name).write_text(json.dumps(said[name] | change))
        with pytest.raises(InputError, match=wanted):
            open_tower(folder)
        (folder / name).write_text(json.dumps(said[name]))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"preprocessor_config.json: no such file"):
        open_tower(folder)


def test_ict_and_hp_and_their_product(tmp_path: Path, pictures: list[PIL.Image.Image]) -> None:
    place, quality = (
        tiny_scorers.clip_folder(tmp_path / "ict", seed=9),
        tiny_scorers.hp_folder(tmp_path / "hp", seed=10),
    )
    first, second = (CLIPModel.from_pretrained(p).eval() for p in (place, quality / "hp_backbone"))
    state = torch.load(quality / "hp_scorer" / "mlp_pytorch_model.bin", weights_only=True)
    seen = torch.stack([pixels.Cropped(24, floor=True)(p) for p in pictures])
    with torch.no_grad():
        made = first(input_ids=open_clip.tokenize(TEXTS), pixel_values=seen)
        x = second.visual_projection(second.vision_model(seen).pooler_output)
    for i in (0, 2, 4, 6, 7):
        x = F.linear(x, state[f"layers.{i}.weight"], state[f"layers.{i}.bias"])
    cosine, sigmoid = (made.image_embeds * made.text_embeds).sum(-1).numpy(), torch.sigmoid(x[:, 0]).numpy()
    np.testing.assert_allclose(scorers.load(f"ict={place}")(pictures, TEXTS), cosine, atol=1e-6)
    np.testing.assert_allclose(scorers.load(f"hp={quality}")(pictures, TEXTS), sigmoid, atol=1e-6)
    np.testing.assert_allclose(scorers.load(f"icthp={place},{quality}")(pictures, TEXTS), cosine * sigmoid, atol=1e-6)


# --- what does not fit


def change(path: Path, edit) -> Path:
    found = torch.load(path, weights_only=True)
    edit(found.get("state_dict", found))
    torch.save(found, path)
    return path


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda s: s.pop("ln_final.weight"), "1 missing (ln_final.weight)"),
        (lambda s: s.update(extra=torch.ones(1)), "1 not known (extra)"),
        (lambda s: s.update({"ln_final.weight": torch.ones(3)}), "1 of another shape (ln_final.weight [3] for [64])"),
        (lambda s: s.pop("visual.conv1.weight"), "1 missing (visual.conv1.weight)"),
        (
            lambda s: s.update(extra=s.pop("visual.conv1.weight")),
            "1 missing (visual.conv1.weight); 1 not known (extra)",
        ),
        (lambda s: s.update({"visual.conv1.weight": torch.ones(3)}), "is no CLIP in open_clip's layout"),
    ],
)
def test_hps_checkpoints_that_do_not_fit(tmp_path: Path, edit, said: str) -> None:
    path = change(tiny_scorers.hps_file(tmp_path / "hps.pt"), edit)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        _ = scorers.load(f"hpsv2={path}").function
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda s: s.pop("blip.visual_encoder.norm.bias"), "1 missing (blip.visual_encoder.post_layernorm.bias)"),
        (lambda s: s.pop("mlp.layers.4.bias"), "1 missing (mlp.layers.4.bias)"),
        (lambda s: s.update(other=torch.ones(1)), "1 not known (other)"),
        (lambda s: s.update({"mlp.layers.7.weight": torch.ones(2, 8), "mlp.layers.7.bias": torch.ones(2)}), "gives 2"),
        (
            lambda s: s.pop("blip.text_encoder.embeddings.word_embeddings.weight"),
            "1 missing (blip.text_encoder.embeddings.word_embeddings.weight)",
        ),
        (
            lambda s: (
                s.pop("mlp.layers.4.bias"),
                s.pop("blip.visual_encoder.norm.bias"),
                s.pop("blip.visual_encoder.cls_token"),
                s.update(
                    {"other": torch.ones(1), "mlp.other": torch.ones(1), "blip.text_encoder.other": torch.ones(1)}
                ),
            ),
            "3 missing (blip.visual_encoder.embeddings.class_embedding, blip.visual_encoder.post_layernorm.bias, "
            "mlp.layers.4.bias); 3 not known (other, mlp.other, blip.text_encoder.other)",
        ),
        (
            lambda s: s.update(other=s.pop("blip.visual_encoder.pos_embed")),
            "1 missing (blip.visual_encoder.pos_embed); 1 not known (other)",
        ),
        (lambda s: s.update({"blip.visual_encoder.patch_embed.proj.weight": torch.ones(2)}), "is no ImageReward"),
    ],
)
def test_imagereward_checkpoints_that_do_not_fit(tmp_path: Path, edit, said: str) -> None:
    place = tiny_scorers.imagereward_folder(tmp_path / "reward")
    change(place / "ImageReward.pt", edit)
    with pytest.raises(InputError, match=re.escape(said)):
        _ = scorers.load(f"imagereward={place}").function


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    place = tiny_scorers.clip_folder(tmp_path / "clip")
    state = load_file(place / "model.safetensors")
    scale = state.pop("logit_scale")
    tiny_scorers.save_safely(state | {"spare": torch.ones(2)}, place / "model.safetensors")
    with pytest.raises(InputError, match=r"1 missing \(logit_scale\); 1 not known \(spare\)"):
        _ = scorers.load(f"pickscore={place}").function
    old = {"vision_model.embeddings.position_ids": torch.arange(10)[None], "logit_scale": scale}
    tiny_scorers.save_safely(state | old, place / "model.safetensors")
    assert callable(scorers.load(f"pickscore={place}").function), "position_ids of old checkpoints are no mistake"
    (place / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="CLIPModel cannot load it"):
        _ = scorers.load(f"pickscore={place}").function


class Bomb:
    def __reduce__(self):
        return (Path.write_text, (Path("exploded"), "x"))


def test_pickles_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hps.pt"
    torch.save({"state_dict": {}, "other": Bomb()}, path)
    with pytest.raises(InputError, match="is no file of tensors only"):
        _ = scorers.load(f"hpsv2={path}").function
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="is no file of tensors only"):
        checkpoints.read(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="expected tensors by name"):
        checkpoints.read(path)
    assert not (tmp_path / "exploded").exists()


# --- places


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pickscore", "yuvalkirstain/PickScore_v1: is not in the local hub cache; fetch it (`hf download"),
        ("hpsv2.1", "xswu/HPSv2: is not in the local hub cache"),
        ("imagereward", "THUDM/ImageReward: is not in the local hub cache"),
        ("aesthetic", "trl-lib/ddpo-aesthetic-predictor: is not in the local hub cache"),
        ("aesthetic_v2.5", "AGPL-3.0: fetch it yourself"),
        ("aesthetic=nowhere.pth", "nowhere.pth: no such file"),
        ("pickscore=nowhere", "nowhere: no such file or folder"),
        ("pickscore=a,b", "a,b: no such file or folder"),
        ("imagereward=a,b,c", "names 3 places, expected at most 2"),
    ],
)
def test_places_that_are_not_there(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        scorers.load(name)
    assert "\n" not in str(caught.value)


def test_the_hub_cache_is_used_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--xswu--HPSv2"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    (repository / "blobs").mkdir()
    made = tiny_scorers.hps_file(tmp_path / "x.pt")
    blob = repository / "blobs" / ("ab" * 32)
    made.rename(blob)
    (snapshot / "HPS_v2.1_compressed.pt").symlink_to(blob)
    found = scorers.load("hpsv2.1")
    assert found.revision == scorers.load(f"hpsv2.1={snapshot}").revision
    assert callable(found.function)
    with pytest.raises(InputError, match=r"holds no HPS_v2_compressed\.pt"):
        scorers.load("hpsv2")


@pytest.mark.parametrize(
    ("folder", "name", "read"),
    [
        ("blobs", "sha256", False),  # what is kept of large files
        ("blobs", "sha1", True),  # what git calls the others
        ("blobs", "z" * 64, True),
        ("models", "sha256", True),  # a folder of one's own
    ],
)
def test_the_hub_cache_names_large_files_by_their_hash(
    folder: str, name: str, read: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"weights"
    called = {"sha256": hashlib.sha256(content).hexdigest(), "sha1": hashlib.sha1(content).hexdigest()}
    blob, plain = tmp_path / folder / called.get(name, name), tmp_path / "plain" / "model.safetensors"
    for path in (blob, plain):
        path.parent.mkdir()
        path.write_bytes(content)
    link = tmp_path / "snapshots" / "0" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(Path("../..") / folder / blob.name)
    hashed, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or digest(file, kind))
    found = checkpoints.revision(link)
    assert hashed == ([str(link)] if read else [])
    assert found == checkpoints.revision(plain)
    assert checkpoints.revision(link.parent) == checkpoints.revision(plain.parent)
