"""A real sentence-transformers folder of 600 kB with random weights, which encodes in milliseconds."""

import shutil
import string
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast

DIMENSION = 64
NUM_TOKENS = 2000
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def make_tiny_encoder(folder: Path, *, seed: int = 0) -> Path:
    """Writes the folder of an encoder of 64 floats per sentence, and returns it."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = list(string.ascii_lowercase + string.digits + string.punctuation)
    words = [first + second for first in SYLLABLES for second in SYLLABLES]
    tokens = [*special, *characters, *(f"##{character}" for character in characters), *words][:NUM_TOKENS]
    bert = folder / "bert"
    bert.mkdir(parents=True)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    BertTokenizerFast(vocab=vocabulary, model_max_length=128).save_pretrained(bert)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=DIMENSION,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=DIMENSION,
        max_position_embeddings=128,
        initializer_range=0.5,  # sentences differ more than with BERT's 0.02
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(bert)
    transformer = Transformer(str(bert), max_seq_length=128)
    SentenceTransformer(modules=[transformer, Pooling(DIMENSION, "mean"), Normalize()], device="cpu").save(str(folder))
    shutil.rmtree(bert)
    return folder
