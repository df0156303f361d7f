"""The contrastive loss: by hand, its gradient against slopes in float64, and a whole encoder under it against PyTorch."""

import numpy as np
import pytest
from tiny_encoders import TINY
from tolerances import ORACLE_GRADIENT_RELATIVE, ORACLE_LOSS, central_differences

from fastmixer.kernels.select import implementations, use_kernels
from fastmixer.model.trainable_encoder import TrainableEncoder
from fastmixer.train.contrastive import contrastive_loss, ranking_loss
from fastmixer.weights.encoder_folder import open_encoder

BATCH, CANDIDATES = 4, 6
STARTS = np.concatenate([[0], np.cumsum([5, 3, 9, 4, 6, 2, 7, 5, 3, 8])])  # anchors, positives, two negatives
SLOPE_SHARE = 1e-6


def masks(*places):
    masked = np.zeros((BATCH, CANDIDATES), bool)
    for place in places:
        masked[place] = True
    return masked


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(params=implementations("matmul"))
def implementation(request):
    with use_kernels(request.param):
        yield request.param


@pytest.mark.parametrize("symmetric", [False, True])
def test_by_hand(rng, implementation, symmetric):
    vectors = unit(rng.standard_normal((BATCH + CANDIDATES, 8)))
    masked = masks((0, 2), (3, 5))
    scores = 20 * vectors[:BATCH] @ vectors[BATCH:].T
    scores[masked] = -np.inf

    def cost(rows):
        return np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(rows)])

    expected = (cost(scores) + cost(scores[:, :BATCH].T)) / 2 if symmetric else cost(scores)
    loss, _ = ranking_loss(vectors.astype(np.float32), masked, symmetric=symmetric)
    assert loss == pytest.approx(expected, abs=1e-5)


def test_equal_vectors_cost_the_logarithm_of_the_candidates_that_count():
    vectors = np.tile(np.eye(4, dtype=np.float32)[0], (BATCH + CANDIDATES, 1))
    assert ranking_loss(vectors, masks())[0] == pytest.approx(np.log(CANDIDATES), abs=1e-6)
    every = masks(*((i, j) for i in range(BATCH) for j in range(CANDIDATES) if j > i + 1))
    expected = np.mean([np.log(i + 2) for i in range(BATCH)])
    assert ranking_loss(vectors, every)[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_gradient_is_the_slope(rng, pooling, symmetric):
    hidden = rng.standard_normal((STARTS[-1], 5))
    how = {"scale": 3.0, "symmetric": symmetric}
    with use_kernels("reference"):
        d_hidden = np.full_like(hidden, np.nan)
        contrastive_loss(hidden, STARTS, pooling, masks((1, 4), (2, 0)), d_hidden=d_hidden, **how)
        slopes = central_differences(
            lambda: contrastive_loss(hidden, STARTS, pooling, masks((1, 4), (2, 0)), **how), hidden
        )
    assert np.abs(slopes).max() > 1e-2
    assert np.abs(d_hidden - slopes).max() <= SLOPE_SHARE * np.abs(slopes).max()


def test_what_is_masked_gets_no_gradient(rng, implementation):
    vectors = unit(rng.standard_normal((BATCH + CANDIDATES, 8))).astype(np.float32)
    _, d_unit = ranking_loss(vectors, masks(*((i, 5) for i in range(BATCH))))
    assert not d_unit[BATCH + 5].any() and d_unit[BATCH + 4].any()


@pytest.mark.parametrize(("name", "symmetric"), [("bert", False), ("bert", True), ("distilbert", False), ("roberta", False)])
def test_loss_and_every_gradient_are_those_of_pytorch(rng, implementation, name, symmetric):
    """transformers' model padded, pooled by the mean, and multiple-negatives ranking loss written out in PyTorch."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = open_encoder(TINY / name)
    ids = rng.integers(3, source.config.vocab, STARTS[-1])

    encoder = TrainableEncoder(source.config, source.tensors)
    hidden = encoder.forward(ids, STARTS)
    d_hidden = encoder.gradient_of_hidden(len(ids))
    loss = contrastive_loss(hidden, STARTS, "mean", masks(), symmetric=symmetric, d_hidden=d_hidden)
    encoder.backward(d_hidden)

    model = transformers.AutoModel.from_pretrained(TINY / name, attn_implementation="eager", dtype=torch.float32).eval()
    lengths = np.diff(STARTS)
    padded = np.full((len(lengths), lengths.max()), 1 if name == "roberta" else 0)
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded[mask] = ids
    mask = torch.tensor(mask)
    out = model(input_ids=torch.tensor(padded), attention_mask=mask.long()).last_hidden_state
    pooled = (out * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    vectors = torch.nn.functional.normalize(pooled, dim=1)
    scores = 20 * vectors[:BATCH] @ vectors[BATCH:].T
    expected = torch.nn.functional.cross_entropy(scores, torch.arange(BATCH))
    if symmetric:
        expected = (expected + torch.nn.functional.cross_entropy(scores[:, :BATCH].T, torch.arange(BATCH))) / 2
    expected.backward()

    assert abs(loss - expected.item()) <= ORACLE_LOSS
    # our gradients by their names: written where the weights are, they come out by the file's names
    encoder.parameters.data[...] = encoder.parameters.gradients_data
    found = encoder.tensors()
    theirs = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    places = source.tensors._places
    assert {place.name for place in places.values()} == set(theirs)
    for key, place in places.items():
        gradient = theirs[place.name].numpy()
        gradient = gradient if place.rows is None else gradient[place.rows]
        difference = np.abs(found[key] - gradient).max()
        # keys' biases shift all of a query's scores alike: their gradients are 0 but for rounding
        scale = np.abs(theirs[place.name.replace(".key.", ".query.").replace(".k_lin.", ".q_lin.")].numpy()).max()
        assert difference <= ORACLE_GRADIENT_RELATIVE * scale, key
