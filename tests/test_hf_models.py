"""Models whose `generate` is not a text model's, or whose inputs are not one row per prompt."""

from inspect import signature

import pytest
import torch
from transformers import (
    BarkCoarseConfig,
    BarkCoarseModel,
    BarkSemanticConfig,
    BarkSemanticModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipConfig,
    BlipForConditionalGeneration,
    DynamicCache,
    EncodecConfig,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    RagConfig,
    RagTokenForGeneration,
    SeamlessM4TConfig,
    SeamlessM4TForSpeechToText,
    SeamlessM4TForTextToText,
    T5Config,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkSemanticGenerationConfig,
)

import tiny
from sampler import Sampler, hf
from sampler.hf import expand_inputs, generate_kwargs
from sampler.hf._transformers import EXPANDS_MEDIA
from tiny import prompts

HOT = Sampler(temperature=2.0, seed=7)
NEW = 6
ONE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGES = {**ONE, "image_size": 8, "patch_size": 4}
TEXT = {**ONE, "vocab_size": 199, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": None}  # fmt: skip


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def blip():
    text = {**TEXT, "encoder_hidden_size": 16, "sep_token_id": 2, "eos_token_id": 2}
    config = BlipConfig(text_config=text, vision_config=IMAGES, projection_dim=16)
    return BlipForConditionalGeneration(config), {"pixel_values": randn(2, 3, 8, 8)}


def blip2():
    opt = {"model_type": "opt", "vocab_size": 99, "hidden_size": 16, "word_embed_proj_dim": 16,
           "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "init_std": 0.3,
           "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
           "eos_token_id": 2}  # fmt: skip
    config = Blip2Config(
        vision_config=IMAGES, qformer_config={**ONE, "encoder_hidden_size": 16, "vocab_size": 99},
        text_config=opt, num_query_tokens=2, image_text_hidden_size=16, image_token_index=98,
    )  # fmt: skip
    return Blip2ForConditionalGeneration(config), {"pixel_values": randn(2, 3, 8, 8)}


def kosmos2():
    text = {"vocab_size": 99, "embed_dim": 16, "layers": 1, "ffn_dim": 16, "attention_heads": 2,
            "max_position_embeddings": 64, "init_std": 0.3}  # fmt: skip
    model = Kosmos2ForConditionalGeneration(
        Kosmos2Config(text_config=text, vision_config=IMAGES, latent_query_num=2)
    )
    ids = torch.tensor([[0, 3, 4, 5, 6]] * 2)
    places = torch.tensor([[0, 1, 1, 0, 0]] * 2)
    return model, {
        "pixel_values": randn(2, 3, 8, 8), "input_ids": ids, "image_embeds_position_mask": places,
        "attention_mask": torch.ones_like(ids),
    }  # fmt: skip


def whisper():
    model = WhisperForConditionalGeneration(WhisperConfig(
        vocab_size=200, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8,
        max_source_positions=1500, max_target_positions=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=3, init_std=0.3, suppress_tokens=None,
        begin_suppress_tokens=None,
    ))  # fmt: skip
    model.generation_config.no_timestamps_token_id = 150
    model.generation_config.is_multilingual = False
    model.generation_config.max_length = None
    return model, {"input_features": randn(2, 8, 3000)}


def seamless(cls):
    model = cls(SeamlessM4TConfig(
        vocab_size=99, hidden_size=16, initializer_range=0.3, max_position_embeddings=64,
        encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, speech_encoder_layers=1,
        speech_encoder_attention_heads=2, speech_encoder_intermediate_size=16,
        feature_projection_input_dim=16, num_conv_pos_embedding_groups=2,
        num_conv_pos_embeddings=4, adaptor_kernel_size=4, adaptor_stride=4, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    ))  # fmt: skip
    model.generation_config.text_decoder_lang_to_code_id = {"eng": 5}
    return model, {"tgt_lang": "eng"}


def text_to_text():
    model, inputs = seamless(SeamlessM4TForTextToText)
    return model, {"input_ids": torch.tensor([[4, 5, 6, 7], [8, 9, 10, 11]]), **inputs}


def speech_to_text():
    model, inputs = seamless(SeamlessM4TForSpeechToText)
    return model, {"input_features": randn(2, 16, 16), **inputs}


BARK = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "initializer_range": 0.3}
SEMANTIC = {
    "eos_token_id": 100, "max_new_tokens": NEW, "semantic_vocab_size": 100,
    "max_input_semantic_length": 16, "text_encoding_offset": 100, "text_pad_token": 200,
    "semantic_infer_token": 201, "semantic_pad_token": 100,
}  # fmt: skip


def bark():
    config = BarkSemanticConfig(input_vocab_size=300, output_vocab_size=120, **BARK)
    ids = torch.arange(32).reshape(2, 16)
    return BarkSemanticModel(config), {
        "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "semantic_generation_config": BarkSemanticGenerationConfig(**SEMANTIC),
    }  # fmt: skip


OTHERS = [blip, blip2, kosmos2, whisper, text_to_text, speech_to_text, bark]


@pytest.fixture(scope="module", params=OTHERS, ids=lambda make: make.__name__)
def other(request):
    torch.manual_seed(0)
    model, inputs = request.param()
    return model.eval(), inputs


def test_a_generate_of_the_models_own(other):
    # Its first parameter has another name, and "multiple values for argument" was the answer.
    model, inputs = other
    ours = hf.generate(model, **inputs, sampler=HOT, max_new_tokens=NEW)
    assert len(ours) == 2
    (_, first), *rest = inputs.items()
    again = hf.generate(model, first, **dict(rest), sampler=HOT, max_new_tokens=NEW)
    assert again.tolist() == ours.tolist()
    if isinstance(model, BarkSemanticModel):
        return  # it has its own processor, and takes no other
    kwargs = generate_kwargs(HOT)
    want = model.generate(**inputs, **kwargs, max_new_tokens=NEW)
    assert ours.tolist() == want.tolist()
    assert kwargs["logits_processor"][-1].samples.tokens.shape == (2, NEW)


# ------------------------------------------------------- several generations of one generate()


@pytest.fixture(scope="module")
def long_form():
    """A Whisper, and 120 seconds of which every 30 are the same."""
    torch.manual_seed(0)
    model, _ = whisper()
    return model.eval(), {
        "input_features": randn(1, 8, 3000).repeat(1, 1, 4),
        "attention_mask": torch.ones(1, 12000).long(), "return_timestamps": True,
        "max_new_tokens": NEW,
    }  # fmt: skip


def test_segments_of_whisper_are_drawn_afresh(long_form):
    # All four had the same random numbers, and `samples` kept the last.
    model, inputs = long_form
    kwargs = generate_kwargs(HOT)
    out = model.generate(**inputs, **kwargs)
    processor = kwargs["logits_processor"][-1]
    segments = [r.tokens[0].tolist() for r in processor.generations]
    assert len(segments) >= 4
    assert len({tuple(tokens) for tokens in segments}) == len(segments)
    assert set(out[0].tolist()) <= {token for tokens in segments for token in tokens}
    with pytest.raises(RuntimeError, match="read `generations`"):
        _ = processor.samples
    assert hf.generate(model, **inputs, sampler=HOT).tolist() == out.tolist()
    streams = generate_kwargs(HOT, streams=[5])
    assert model.generate(**inputs, **streams).tolist() != out.tolist()


def test_whisper_of_fewer_and_fewer_rows(long_form):
    model, inputs = long_form
    short = torch.ones(2, 12000).long()
    short[1, 6000:] = 0
    inputs = {**inputs, "input_features": randn(2, 8, 12000), "attention_mask": short}
    kwargs = generate_kwargs(HOT)
    model.generate(**inputs, **kwargs)
    batches = [len(r.tokens) for r in kwargs["logits_processor"][-1].generations]
    if len(set(batches)) > 1:  # some versions pad the batch
        with pytest.raises(ValueError, match=r"^`streams` are for 2 rows, but another generation"):
            model.generate(**inputs, **generate_kwargs(HOT, streams=[5, 6]))


def test_whisper_returns_its_own_output(long_form):
    model, inputs = long_form
    inputs = {**inputs, "return_timestamps": False, "attention_mask": None}
    inputs["input_features"] = inputs["input_features"][:, :, :3000]
    out = hf.generate(model, **inputs, sampler=HOT, return_dict_in_generate=True)
    assert out.sequences.shape[0] == 1


def test_whisper_calls_its_custom_generate_once_a_segment(long_form):
    # Each call began at draw index 0.
    model, inputs = long_form
    with pytest.raises(
        ValueError, match=r"^WhisperForConditionalGeneration.generate\(\) cannot use"
    ):
        model.generate(**inputs, custom_generate=hf.generate, sampler=HOT)


def test_several_texts_of_whisper():
    torch.manual_seed(0)
    model, inputs = whisper()
    more = {"sampler": HOT, "max_new_tokens": NEW}
    with pytest.raises(ValueError, match=r"repeat its inputs with expand_inputs$"):
        hf.generate(model.eval(), **inputs, **more, num_return_sequences=2)
    out = hf.generate(model, **expand_inputs(inputs, 2), **more)
    assert len({tuple(text) for text in out.tolist()}) == 4


def test_windows_of_bark_are_drawn_afresh():
    # Its windows are equally long, so that every one was drawn with the same random numbers.
    torch.manual_seed(0)
    model = BarkCoarseModel(BarkCoarseConfig(input_vocab_size=300, output_vocab_size=300, **BARK))
    torch.nn.init.zeros_(model.eval().lm_head.weight)
    out = hf.generate(
        model, torch.arange(8)[None], codebook_size=20, sampler=HOT,
        semantic_generation_config=BarkSemanticGenerationConfig(**SEMANTIC),
        coarse_generation_config=BarkCoarseGenerationConfig(
            coarse_semantic_pad_token=290, coarse_rate_hz=75, n_coarse_codebooks=2,
            coarse_infer_token=291, max_coarse_input_length=16, max_coarse_history=20,
            sliding_window_len=6,
        ),
    )[0].tolist()  # fmt: skip
    windows = [tuple(out[i : i + 6]) for i in range(0, 24, 6)]
    assert len(set(windows)) == 4


# ------------------------------------------------------------------- what this loop cannot do


def musicgen():
    config = MusicgenConfig(
        text_encoder=T5Config(
            vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
        ).to_dict(),
        audio_encoder=EncodecConfig(
            codebook_size=64, codebook_dim=8, hidden_size=8, num_filters=2, num_lstm_layers=1,
            target_bandwidths=[6.0], upsampling_ratios=[2, 2],
        ).to_dict(),
        decoder=MusicgenDecoderConfig(
            vocab_size=64, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
            num_codebooks=2, pad_token_id=64, bos_token_id=64, max_position_embeddings=64,
        ).to_dict(),
    )  # fmt: skip
    model = MusicgenForConditionalGeneration(config).eval()
    model.generation_config.update(decoder_start_token_id=64, pad_token_id=64, bos_token_id=64)
    return model, {"input_ids": torch.tensor([[4, 5, 6]]), "attention_mask": torch.ones(1, 3)}


def test_guidance_that_runs_after_the_draw():
    # "`input_ids` has to be for 12 rows, but is for 6" named no cause.
    model, inputs = musicgen()
    with pytest.raises(ValueError, match=r"^`scores` have 4 rows for 2 texts, because classifier-"):
        model.generate(**inputs, **generate_kwargs(HOT), max_new_tokens=NEW, guidance_scale=3.0)


def rag():
    t5 = T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    ).to_dict()  # fmt: skip
    bert = {"model_type": "bert", **ONE, "vocab_size": 50}
    config = RagConfig(question_encoder=bert, generator=t5, n_docs=1, vocab_size=50)
    context = torch.tensor([[4, 5, 6]])
    return RagTokenForGeneration(config).eval(), {
        "context_input_ids": context, "context_attention_mask": torch.ones_like(context),
        "doc_scores": torch.zeros(1, 1), "n_docs": 1,
    }  # fmt: skip


class Ignoring(torch.nn.Module):
    """Its `generate` takes anything, and writes what it likes."""

    config = None

    def generate(self, inputs=None, **kwargs):
        return torch.ones(1, 3)


@pytest.mark.parametrize("make", [musicgen, rag, lambda: (Ignoring(), {})])
def test_a_generate_that_does_not_run_the_loop(make):
    model, inputs = make()
    with pytest.raises(RuntimeError, match=r"\.generate\(\) does not run this loop, so"):
        hf.generate(model, **inputs, sampler=HOT, max_new_tokens=2)


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), None, "gpt2"], ids=str)
def test_no_model(model):
    words = r"^`model` has to be a transformers model that generates text, but is a "
    with pytest.raises(TypeError, match=words):
        hf.generate(model, torch.ones(1, 2).long(), sampler=HOT)
    with pytest.raises(TypeError, match=words):
        hf.score(model, torch.ones(1, 2).long(), HOT)


# ------------------------------------------------------------------ images, several of a prompt


def llava():
    model = LlavaForConditionalGeneration(LlavaConfig(
        text_config=LlamaConfig(**TEXT).to_dict(),
        vision_config={**IMAGES, "model_type": "clip_vision_model", "projection_dim": 16},
        image_token_id=198, vision_feature_select_strategy="full", vision_feature_layer=-1,
    ))  # fmt: skip
    image = [198] * 5
    ids = torch.tensor([[1, *image, 7, *image, 8, 9], [1, *range(3, 16)]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return model, {**inputs, "pixel_values": randn(2, 3, 8, 8)}


def qwen2_vl():
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1]}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(
        text_config={**TEXT, "num_key_value_heads": 1,
                     "rope_scaling": {"type": "default", **rope},
                     "rope_parameters": {"rope_theta": 10000.0, **rope}},
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2,
                       "patch_size": 2, "mlp_ratio": 1, "spatial_merge_size": 2,
                       "temporal_patch_size": 2},
        image_token_id=198, vision_start_token_id=196, vision_end_token_id=197,
    ))  # fmt: skip
    ids = torch.tensor([
        [0, 0, 1, 196, *[198] * 4, 197, 5, 6, 7, 8, 9],
        [1, 196, *[198] * 8, 197, 5, 6, 7],
    ])  # fmt: skip
    inputs = {
        "input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": randn(16 + 32, 24),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 8]]),
    }  # fmt: skip
    if "mm_token_type_ids" in signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (ids == 198).int()
    return model, inputs


@pytest.fixture(scope="module", params=[llava, qwen2_vl], ids=lambda make: make.__name__)
def pictures(request):
    torch.manual_seed(0)
    model, inputs = request.param()
    return model.eval(), inputs


def test_expand_inputs_does_not_mix_images(pictures):
    # The texts were about other pictures, silently.
    model, inputs = pictures
    words = r"^`pixel_values` has shape .*which of its rows belong to which of the 2 prompts: use"
    with pytest.raises(ValueError, match=words):
        expand_inputs(inputs, 3)
    assert list(expand_inputs(inputs, 1)) == list(inputs)
    # What the message says to use.
    more = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    once = hf.generate(model, **inputs, sampler=HOT, **more)
    if isinstance(model, LlavaForConditionalGeneration) and not EXPANDS_MEDIA:
        with pytest.raises(ValueError, match="this transformers would mix them up"):
            hf.generate(model, **inputs, sampler=HOT, num_return_sequences=3, **more)
        return
    many = hf.generate(model, **inputs, sampler=HOT, num_return_sequences=3, **more)
    assert torch.allclose(many.logits[0], once.logits[0].repeat_interleave(3, 0), atol=1e-4)


def test_two_images_of_one_prompt():
    torch.manual_seed(0)
    model, inputs = llava()
    lone = {name: value[:1] for name, value in inputs.items()}
    lone["pixel_values"] = inputs["pixel_values"]
    with pytest.raises(ValueError, match=r"^`pixel_values` has shape \(2, 3, 8, 8\), .* 1 prompts"):
        expand_inputs(lone, 2)
    # One image of one prompt is one row.
    lone = {"input_ids": torch.tensor([[1, *[198] * 5, 7]]), "pixel_values": randn(1, 3, 8, 8)}
    kwargs = generate_kwargs(HOT)
    many = model.eval().generate(**expand_inputs(lone, 2), **kwargs, max_new_tokens=NEW)
    ours = hf.generate(model, **lone, sampler=HOT, num_return_sequences=2, max_new_tokens=NEW)
    assert many.tolist() == ours.tolist()


def test_outputs_of_an_encoder_are_repeated():
    # Prompts and their masks were, and these were not.
    model, inputs = tiny.t5(), tiny.encoder_inputs()
    with torch.no_grad():
        encoded = model.get_encoder()(**inputs)
    given = {"attention_mask": inputs["attention_mask"], "encoder_outputs": encoded}
    texts = model.generate(**expand_inputs(given, 2), **generate_kwargs(HOT), max_new_tokens=NEW)
    ours = hf.generate(model, **given, sampler=HOT, num_return_sequences=2, max_new_tokens=NEW)
    assert texts.tolist() == ours.tolist()
    for name, value in (("pixels", (torch.ones(2),)), ("cache", DynamicCache())):
        with pytest.raises(TypeError, match=rf"^`inputs` have to hold tensors, but {name} is a"):
            expand_inputs({**prompts(2), name: value}, 2)


def test_places_of_images_have_another_axis_first():
    inputs = {**prompts(3), "position_ids": torch.zeros(3, 3, 7)}
    with pytest.raises(ValueError, match=r"^`position_ids` has shape \(3, 3, 7\)"):
        expand_inputs(inputs, 2)
    inputs["position_ids"] = inputs["position_ids"][0]
    assert expand_inputs(inputs, 2)["position_ids"].shape == (6, 7)


def test_inputs_without_text_are_one_row_each():
    assert expand_inputs({"input_features": randn(2, 8, 30)}, 2)["input_features"].shape[0] == 4
    inputs = {**prompts(2), "decoder_input_ids": torch.ones(2, 3).long()}
    assert expand_inputs(inputs, 2)["decoder_input_ids"].shape == (4, 3)
    embeds = {"inputs_embeds": randn(2, 7, 4), "attention_mask": torch.ones(2, 7)}
    assert expand_inputs(embeds, 2)["inputs_embeds"].shape == (4, 7, 4)


def test_score_of_a_prompt_that_ends_in_an_image():
    torch.manual_seed(0)
    model, inputs = qwen2_vl()
    ids = torch.tensor([[1, 5, 6, 196, *[198] * 4]])
    image = {
        "pixel_values": inputs["pixel_values"][:16],
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    if "mm_token_type_ids" in inputs:
        image["mm_token_type_ids"] = (ids == 198).int()
    kwargs = generate_kwargs(HOT, attention_mask=torch.ones_like(ids))
    out = model.eval().generate(ids, **image, **kwargs, max_new_tokens=NEW)
    r = hf.score(model, out, HOT, prompt_length=8, **image)
    assert torch.isfinite(r.logprobs).all()
    # Some versions count on from the image's last place, where one pass goes on after its largest.
    drawn = kwargs["logits_processor"][-1].samples
    assert (r.logprobs - drawn.logprobs)[:, 0].abs().max() < 1e-4


def test_score_of_a_text_without_an_image():
    torch.manual_seed(0)
    model, inputs = qwen2_vl()
    if "mm_token_type_ids" in inputs:
        ids = prompts(2)["input_ids"]
        r = hf.score(model.eval(), ids, HOT, mm_token_type_ids=None)
        assert r.logprobs.tolist() == hf.score(model, ids, HOT).logprobs.tolist()


def test_score_of_texts_about_images(pictures):
    # Positions of a plain text would be other ones than those of generate().
    model, inputs = pictures
    mask = inputs["attention_mask"]
    kwargs = generate_kwargs(HOT, attention_mask=mask)
    out = model.generate(**inputs, **kwargs, max_new_tokens=NEW)
    more = {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
    r = hf.score(model, out, HOT, prompt_length=mask.shape[1], attention_mask=mask, **more)
    drawn = kwargs["logits_processor"][-1].samples
    assert (r.logprobs - drawn.logprobs).abs().max() < 1e-4
