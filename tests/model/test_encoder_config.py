"""What an encoder may be: errors name the configuration that was asked for, the field and the value."""

import pytest

from fastmixer.model.encoder_config import EncoderConfig, HeadConfig

SIZES = {"vocab": 9, "context": 8, "dim": 8, "layers": 2, "heads": 2, "hidden": 16}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: HeadConfig(0, "tanh"), "HeadConfig: classes must be >= 1; got 0"),
        (lambda: HeadConfig(1, "relu6"), "HeadConfig: activation must be one of gelu, gelu_tanh, silu, relu, tanh, none; got 'relu6'"),
        (lambda: HeadConfig(1, "tanh", pooling="max"), "HeadConfig: pooling must be one of cls, mean; got 'max'"),
        (lambda: EncoderConfig(**SIZES, activation="tanh"), "EncoderConfig: activation must be one of gelu, gelu_tanh, silu, relu; got 'tanh'"),
        (lambda: EncoderConfig(**SIZES, placement="both"), "EncoderConfig: placement must be one of post, pre; got 'both'"),
        (lambda: EncoderConfig(**SIZES | {"heads": 3}), "EncoderConfig: dim must be a multiple of heads 3; got 8"),
        (lambda: EncoderConfig(**SIZES, window=3), "EncoderConfig: window must be given where local_layers are, and only there; got 3"),
    ],
)  # fmt: skip
def test_what_is_refused(make, text):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == text
