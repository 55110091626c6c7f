"""The encoder of the models: a tiny one, or the parameter of a test."""

import pytest

from twinsqueeze.data.encoder import SentenceEncoder, resolve_encoder


@pytest.fixture(scope="module")
def encoder(request, tiny_encoder) -> SentenceEncoder:
    return resolve_encoder(getattr(request, "param", None) or str(tiny_encoder), "cpu")
