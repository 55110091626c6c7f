"""The encoders of the models: a tiny one, and in slow tests the default one."""

import pytest

from twinsqueeze.data.encoder import DEFAULT_ENCODER, SentenceEncoder, resolve_encoder


@pytest.fixture(scope="module", params=["tiny", pytest.param(DEFAULT_ENCODER, marks=pytest.mark.slow)])
def encoder(request, tiny_encoder) -> SentenceEncoder:
    return resolve_encoder(str(tiny_encoder) if request.param == "tiny" else request.param, "cpu")
