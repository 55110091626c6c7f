"""Graphs of encoders with prompts, run by onnxruntime on the tokens of the exported tokenizer."""

import json

import numpy as np
import onnxruntime
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tokenizers import Tokenizer

from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.initialization import kaiming_uniform_layers
from twinsqueeze.model.onnx import export_text_model
from twinsqueeze.model.sentence_transformer import build_sentence_transformer, describe_text_model

TEXTS = ["A man is playing a guitar.", "", "Two dogs run through the snow.", "word " * 600]
PROMPTS = {"query": "query: ", "passage": "represent the passage for retrieval: "}


@pytest.mark.parametrize(
    ("pooling", "include_prompt", "default", "padding"),
    [  # all poolings beside each other, each of which gives dimensions of its own
        (Pooling.POOLING_MODES, False, "query", "left"),
        ("cls", True, "passage", "right"),
        pytest.param(Pooling.POOLING_MODES, False, None, "right", marks=pytest.mark.slow),
        pytest.param(Pooling.POOLING_MODES, True, None, "left", marks=pytest.mark.slow),
    ],
)
def test_graph_encodes_with_each_prompt_as_the_encoder(
    tiny_encoder, tmp_path, pooling, include_prompt, default, padding
):
    transformer = SentenceTransformer(str(tiny_encoder), device="cpu")[0]
    transformer.tokenizer.padding_side = padding
    modules = [transformer, Pooling(64, pooling, include_prompt=include_prompt), Normalize()]
    encoder = SentenceTransformer(modules=modules, prompts=PROMPTS, default_prompt_name=default, device="cpu")
    encoder.save(str(tmp_path / "encoder"))
    settings = tmp_path / "encoder" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"padding_side": padding}))  # which is not saved
    dim = encoder.get_embedding_dimension()
    network = CompressorNetwork(kaiming_uniform_layers((dim, 8), np.random.default_rng(0)))
    model = build_sentence_transformer(resolve_encoder(str(tmp_path / "encoder"), "cpu"), network)
    info = describe_text_model(model)
    export_text_model(tmp_path, model)

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    (weight, bias), *_ = network.layers
    for options in ({}, {"prompt": ""}, *({"prompt_name": name} for name in PROMPTS)):
        prompt = options.get("prompt", PROMPTS.get(options.get("prompt_name", default), ""))
        tokens = tokenizer.encode_batch([prompt + text for text in TEXTS])
        inputs = {
            "input_ids": np.array([each.ids for each in tokens]),
            "attention_mask": np.array([each.attention_mask for each in tokens]),
            "token_type_ids": np.array([each.type_ids for each in tokens]),
        }
        if not include_prompt:
            inputs["prompt_length"] = np.array(info.excluded_lengths.get(prompt, 0))
        expected = encoder.encode(TEXTS, **options) @ weight.numpy().T + bias.numpy()
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(session.run(None, inputs)[0], expected, atol=1e-5)
