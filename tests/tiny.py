"""Tiny random pipelines of the real classes, tokenizers built offline; each builds in well under a second."""

import json
import string
from pathlib import Path

import diffusers
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CHAT = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
WORDS = [
    *("a", "the", "of", "red", "green", "blue", "circle", "square"),
    *("large", "small", "left", "right", "on", "with", "and", "photo"),
]


def merged(vocabulary: list[str], split: str, join: str) -> list[tuple[str, str]]:
    """Merges by which WORDS become single tokens; `vocabulary` grows by what they make.

    `split` stands before a word, `join` behind its last letter.
    """
    merges = []
    for word in WORDS:
        parts = [*([split] if split else []), *word[:-1], word[-1] + join]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            if parts[0] not in vocabulary:
                vocabulary.append(parts[0])
    return merges


def clip_tokenizer(length: int = 77) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer that knows WORDS as single tokens."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges = merged(vocabulary, "", "</w>")
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(vocabulary)}, merges=merges, model_max_length=length)


def t5_tokenizer(length: int = 512) -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    letters = [(letter, -4.0 - 0.001 * i) for i, letter in enumerate(string.printable.strip())]
    words = [("▁" + word, -1.0 - 0.01 * i) for i, word in enumerate(WORDS)]
    return T5Tokenizer(vocab=special + letters + words, extra_ids=0, model_max_length=length)


def gemma_tokenizer() -> GemmaTokenizer:
    vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"] + [f"<0x{i:02X}>" for i in range(256)]
    vocabulary += [*string.printable.strip(), "\n"]
    merges = merged(vocabulary, "▁", "")
    return GemmaTokenizer(vocab={t: i for i, t in enumerate(vocabulary)}, merges=merges, model_max_length=300)


def qwen_tokenizer(template: str | None = None) -> Qwen2Tokenizer:
    vocabulary = sorted(ByteLevel.alphabet())
    merges = merged(vocabulary, "Ġ", "")
    vocabulary.append("<|endoftext|>")
    marks = ["im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
    tokenizer = Qwen2Tokenizer(
        vocab={t: i for i, t in enumerate(vocabulary)},
        merges=merges,
        model_max_length=2048,
        extra_special_tokens=[*(f"<|{mark}|>" for mark in marks), "<think>", "</think>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def vae(channels: int = 4, **changes: object) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=32,
        **changes,
    ).eval()


def clip(
    tokenizer: CLIPTokenizer, projection: int | None = None, act: str = "quick_gelu", hidden: int = 32
) -> torch.nn.Module:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=projection or 32,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act=act,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5(tokenizer: T5Tokenizer, width: int = 32) -> T5EncoderModel:
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **sizes)).eval()


def language(tokenizer: PreTrainedTokenizerBase, layers: int = 2) -> dict[str, int]:
    """Sizes of a tiny language model."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }


def sd(prediction: str = "epsilon") -> diffusers.StableDiffusionPipeline:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(
            clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction, **SCALED
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd_v() -> diffusers.StableDiffusionPipeline:
    return sd("v_prediction")


def sdxl(prediction: str = "epsilon") -> diffusers.StableDiffusionXLPipeline:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=80,
        attention_head_dim=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=8 * 6 + 32,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        timestep_spacing="leading", steps_offset=1, prediction_type=prediction, **SCALED
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025),
        text_encoder=clip(tokenizer),
        text_encoder_2=clip(tokenizer, projection=32, act="gelu", hidden=48),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def sd3(recent: bool = False) -> diffusers.StableDiffusion3Pipeline:
    torch.manual_seed(0)
    tokenizer, third = clip_tokenizer(), t5_tokenizer() if recent else None
    hidden = 48 if recent else 32
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32 + hidden,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=32,
        dual_attention_layers=(0,) if recent else (),
        qk_norm="rms_norm" if recent else None,
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(tokenizer, projection=32),
        tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, projection=32, act="gelu", hidden=hidden),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(third, 32 + hidden) if recent else None,
        tokenizer_3=third,
    )
    pipe.text_encoder.text_projection.weight.data.copy_(torch.eye(32))  # all that readers of single files know
    return pipe


def sd35() -> diffusers.StableDiffusion3Pipeline:
    """As 3.5 medium: a second attention in the first block, norms of query and key, and with T5."""
    return sd3(recent=True)


def flux(guided: bool = True) -> diffusers.FluxPipeline:
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guided,
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guided),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5(tokenizer_2),
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


def flux_schnell() -> diffusers.FluxPipeline:
    return flux(guided=False)


def pixart_transformer(sample_size: int, *, told: bool) -> diffusers.PixArtTransformer2DModel:
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=48,
        sample_size=sample_size,
        patch_size=2,
        caption_channels=32,
        use_additional_conditions=told,
        norm_num_groups=4,
    )


def pixart() -> diffusers.PixArtSigmaPipeline:
    torch.manual_seed(0)
    tokenizer = t5_tokenizer(300)
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5(tokenizer),
        vae=vae(scaling_factor=0.13025),
        transformer=pixart_transformer(16, told=False),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02),
    )


def pixart_alpha() -> diffusers.PixArtAlphaPipeline:
    torch.manual_seed(0)
    tokenizer = t5_tokenizer(120)
    return diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5(tokenizer),
        vae=vae(),
        transformer=pixart_transformer(128, told=True),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02),
    )


def sana() -> diffusers.SanaPipeline:
    torch.manual_seed(0)
    tokenizer = gemma_tokenizer()
    halves = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in {
            "block_types": ("ResBlock", "EfficientViTBlock"),
            "block_out_channels": (8, 8),
            "qkv_multiscales": ((), (5,)),
            "layers_per_block": (1, 1),
        }.items()
    }
    autoencoder = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
        **halves,
    )
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=32,
        sample_size=32,
        timestep_scale=0.5,
    )
    encoder = Gemma2Model(Gemma2Config(head_dim=8, query_pre_attn_scalar=8, **language(tokenizer)))
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder.eval(),
        vae=autoencoder.eval(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def qwen_image() -> diffusers.QwenImagePipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    marks = {
        name: tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in {
            "image_token_id": "image_pad",
            "video_token_id": "video_pad",
            "vision_start_token_id": "vision_start",
            "vision_end_token_id": "vision_end",
        }.items()
    }
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    text = language(tokenizer) | {"max_position_embeddings": 2048, "rope_parameters": rope}
    vision = {
        **{"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32},
        **{"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112},
        "fullatt_block_indexes": [1],
    }
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **marks))
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.7, 1.0, 2.0],
    )
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=True),
        vae=autoencoder.eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def zimage() -> diffusers.ZImagePipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(CHAT)
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 32, 32],
    )
    encoder = Qwen3Model(Qwen3Config(head_dim=8, max_position_embeddings=2048, **language(tokenizer)))
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def flux2_klein(distilled: bool = False) -> diffusers.Flux2KleinPipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(CHAT)
    autoencoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=32,
    )
    autoencoder.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, 16))
    autoencoder.bn.running_var.copy_(torch.linspace(0.5, 2.0, 16))
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=96,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    # the pipeline reads the states behind layers 9, 18 and 27
    encoder = Qwen3ForCausalLM(Qwen3Config(head_dim=8, max_position_embeddings=2048, **language(tokenizer, 27)))
    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder.eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer,
        is_distilled=distilled,
    )


FAMILIES = {
    **{"sd": sd, "sd_v": sd_v, "sdxl": sdxl, "sd3": sd3, "flux": flux, "flux_schnell": flux_schnell},
    **{"pixart": pixart, "pixart_alpha": pixart_alpha, "sana": sana, "qwen_image": qwen_image, "zimage": zimage},
    **{"flux2_klein": flux2_klein},
}


def absent(folder: Path) -> dict[str, None]:
    """The components that a folder's index gives as null, which diffusers wants to be told again."""
    index = json.loads((folder / "model_index.json").read_text())
    return {name: None for name, entry in index.items() if isinstance(entry, list) and entry[0] is None}


def save(family: str, folder: Path) -> Path:
    """A tiny random pipeline of a family, in diffusers' layout."""
    FAMILIES[family]().save_pretrained(folder)
    return folder
