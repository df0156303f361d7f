"""Fine-tuning: retrieval gets better, nobody is told off for what belongs together, the result opens elsewhere, the bits
are the same always; and what is refused."""

import json
import os
import signal

import numpy as np
import pair_models
import pytest
from pair_models import QUICK, TEXTS, embed, made_pairs, tune, write_random_encoder
from safetensors.numpy import load_file
from tiny_encoders import TINY, write_dense, write_json, write_modules

import fastmixer as fm
from fastmixer.data.pairs import as_pairs
from fastmixer.embed.sentence_tokenizer import SentenceTokenizer
from fastmixer.kernels import threads
from fastmixer.kernels.select import implementations, use_kernels
from fastmixer.train import embedder
from fastmixer.train.embedder import EmbedderResult
from fastmixer.train.pair_tokens import Prompts, TokenizedPairs, batches, batches_in_epoch
from fastmixer.train.retrieval import retrieval_score
from fastmixer.train.trainer import NonFiniteError


@pytest.fixture
def model(tmp_path):
    return write_random_encoder(tmp_path / "model")


# ---- it learns ----


def test_retrieval_gets_better_on_pairs_that_it_has_not_seen(model, tmp_path):
    pairs, lines = made_pairs(280), []
    trainer = fm.EmbedderTrainer(
        model, pairs[:220], evaluation=pairs[220:], out=tmp_path / "tuned", steps=100, batch=16, learning_rate=3e-3,
        on_message=lines.append, progress=False,
    )  # fmt: skip
    result = trainer.fit()
    assert result.before.accuracy <= 0.1 and result.after.accuracy >= 0.9
    assert result.after.mrr >= result.after.accuracy > 0.9
    assert (result.before.anchors, result.before.texts) == (60, 60)
    assert np.mean(result.losses[-10:]) < 0.1 * np.mean(result.losses[:5])
    assert [line.split()[:4] for line in lines] == [
        [when, "top-1", "accuracy", f"{score.accuracy:.1%},"]
        for when, score in (("before:", result.before), ("after:", result.after))
    ]
    tuned = fm.load(tmp_path / "tuned", weights="float32")
    anchors, positives = (tuned.embed(list(side)) for side in zip(*pairs[220:], strict=True))
    assert ((anchors @ positives.T).argmax(axis=1) == np.arange(60)).mean() == pytest.approx(result.after.accuracy)


@pytest.mark.parametrize("implementation", [name for name in implementations("matmul") if name != "reference"])
def test_every_implementation_takes_the_same_steps(model, tmp_path, implementation):
    with use_kernels("reference"):
        _, expected = tune(model, tmp_path / "reference")
    with use_kernels(implementation):
        _, result = tune(model, tmp_path / "other")
    np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-3)


@pytest.mark.parametrize("name", ["distilbert", "roberta", "xlm-roberta", "mpnet", "modernbert"])
def test_other_architectures_learn(tmp_path, name):
    model = write_random_encoder(tmp_path / "model", name, "cls_token")
    _, result = tune(model, tmp_path / "tuned", made_pairs(120), steps=40, batch=16, dropout=0)
    assert np.mean(result.losses[-5:]) < 0.7 * np.mean(result.losses[:5])
    assert np.abs(embed(tmp_path / "tuned") - embed(model)).max() > 0.01


def test_the_largest_of_tokens_learns(tmp_path):
    model = write_random_encoder(tmp_path / "model", mode="max_tokens")
    _, result = tune(model, tmp_path / "tuned", made_pairs(120), steps=40, batch=16, dropout=0)
    assert np.mean(result.losses[-5:]) < 0.7 * np.mean(result.losses[:5])
    assert fm.load(tmp_path / "tuned").recipe.pooling == "max"


def test_dense_stages_learn_and_are_written(tmp_path):
    model = write_random_encoder(tmp_path / "model")
    write_modules(
        model, ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Dense", "3_Dense"), ("Normalize", "4_Normalize")
    )
    write_dense(model, "2_Dense", 32, 24)
    write_dense(model, "3_Dense", 24, 12, bias=False, activation="torch.nn.modules.linear.Identity")
    trainer, result = tune(model, tmp_path / "tuned", made_pairs(120), steps=40, batch=16, dropout=0)
    assert np.mean(result.losses[-5:]) < 0.7 * np.mean(result.losses[:5])
    for place, names in (("2_Dense", {"linear.weight", "linear.bias"}), ("3_Dense", {"linear.weight"})):
        before, after = (load_file(folder / place / "model.safetensors") for folder in (model, tmp_path / "tuned"))
        assert set(before) == set(after) == names
        assert all((before[name] != after[name]).any() for name in names)
    vectors = trainer.vectors(trainer.pairs, trainer.pairs.anchors[:8])
    found = fm.load(tmp_path / "tuned", weights="float32").embed([pair[0] for pair in made_pairs(120)[:8]])
    assert vectors.shape == (8, 12)
    write_json(model / "config_sentence_transformers.json", {"truncate_dim": 5})
    cut = fm.EmbedderTrainer(model, made_pairs(8), out=tmp_path / "cut", **QUICK)
    whole = tune(model, tmp_path / "again", steps=1)[0]
    assert cut.vectors(cut.pairs, cut.pairs.anchors).shape == (8, 5) and whole.dim == 5
    assert ((found * vectors).sum(axis=1) / np.linalg.norm(vectors, axis=1)).min() >= 0.99999


def test_hard_negatives_and_symmetry_change_the_loss(model, tmp_path):
    pairs = [(anchor, positive, [f"{positive} alice", "bob"]) for anchor, positive in made_pairs(20)]
    plain = tune(model, tmp_path / "a", [pair[:2] for pair in pairs], dropout=0)[1].losses[0]
    harder = tune(model, tmp_path / "b", pairs, dropout=0)[1].losses[0]
    both = tune(model, tmp_path / "c", pairs, dropout=0, symmetric=True)[1].losses[0]
    assert harder > plain + 0.3 and both != harder


def test_frozen_embeddings_stay(model, tmp_path):
    tune(model, tmp_path / "tuned", freeze_embeddings=True)
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "tuned" / "model.safetensors")
    same = {name for name in before if (before[name] == after[name]).all()}
    frozen = {name for name in before if name.startswith("embeddings.")}
    assert frozen <= same and {name for name in before if name.startswith("encoder.")}.isdisjoint(same)


def test_the_learning_rate_warms_up_and_ends_at_nothing(model, tmp_path, monkeypatch):
    rates = {}
    for name, options in (("usual", {}), ("given", {"warmup": 4, "schedule": "constant"})):
        trainer = fm.EmbedderTrainer(model, made_pairs(40), out=tmp_path / name, **{**QUICK, "steps": 20, **options})
        step, seen = trainer.optimizer.step, rates.setdefault(name, [])
        monkeypatch.setattr(
            trainer.optimizer, "step", lambda rate, seen=seen, step=step: seen.append(rate) or step(rate)
        )
        trainer.fit()
    assert rates["given"] == [0.25 * 3e-3, 0.5 * 3e-3, 0.75 * 3e-3, *[3e-3] * 17]
    assert rates["usual"][:3] == [0.5 * 3e-3, 3e-3, 3e-3] and rates["usual"][-1] == 0
    assert (np.diff(rates["usual"][2:]) < 0).all()


def test_dropout_is_drawn_anew_at_each_step_and_not_when_evaluated(model, tmp_path):
    pairs = made_pairs(8)
    still = tune(model, tmp_path / "a", pairs, learning_rate=0, dropout=0)[1].losses
    moved = tune(model, tmp_path / "b", pairs, learning_rate=0, dropout=0.3, evaluation=pairs)[1]
    assert np.ptp(still) < 1e-5 and len(set(moved.losses)) == 4 and np.ptp(moved.losses) > 1e-3
    assert moved.before == moved.after


def test_vectors_do_not_depend_on_how_many_go_at_once(model, tmp_path, monkeypatch):
    trainer = fm.EmbedderTrainer(model, made_pairs(12), out=tmp_path / "tuned", **QUICK)
    rows = np.array([7, 3, 11, 0, 20, 5])
    whole = trainer.vectors(trainer.pairs, rows)
    monkeypatch.setattr(embedder, "EVALUATED_TOKENS", 12)
    np.testing.assert_allclose(trainer.vectors(trainer.pairs, rows), whole, atol=1e-6)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


def test_the_last_batch_of_one_pair_is_left_out_and_each_epoch_has_its_own_order():
    for count, sizes in ((9, [4, 4]), (10, [4, 4, 2]), (3, [3]), (4, [4])):
        assert batches_in_epoch(count, 4) == len(sizes)
        order = batches(count, 4, seed=1)
        epochs = [[next(order) for _ in sizes] for _ in range(2)]
        for epoch in epochs:
            assert [len(batch) for batch in epoch] == sizes
            assert len(set(np.concatenate(epoch).tolist())) == sum(sizes)
        assert count < 9 or np.concatenate(epochs[0]).tolist() != np.concatenate(epochs[1]).tolist()


# ---- the same bits ----


def test_the_same_seed_gives_the_same_bits_on_any_number_of_threads(model, tmp_path):
    found = []
    for count in (1, 2, 3):
        threads.set_threads(count)
        _, result = tune(model, tmp_path / str(count), holdout=0.2)
        found.append((result.losses, result.after, (tmp_path / str(count) / "model.safetensors").read_bytes()))
    assert found[0] == found[1] == found[2]
    assert tune(model, tmp_path / "other", seed=1)[1].losses != found[0][0]


# ---- what belongs together ----


NO_PROMPTS = Prompts()


def tokenized(model, pairs, prompts=NO_PROMPTS):
    return TokenizedPairs(as_pairs(pairs), SentenceTokenizer(model, vocab=96, context=64), prompts)


@pytest.mark.parametrize("prompts", [Prompts(), Prompts("query : ", "passage : ")])
def test_no_text_that_belongs_to_an_anchor_is_its_negative(model, prompts):
    pairs = tokenized(
        model, [("a", "b"), ("a", "c"), ("d", "b"), ("e", "a"), ("f", "g", ["c", "h"]), ("b", "i")], prompts
    )
    chosen = np.array([0, 1, 2, 3, 4, 5])
    rows = pairs.rows_of(chosen)
    assert len(rows) == 6 + 6 + 2
    masked = pairs.masked(chosen, rows[6:])
    # candidates: b c b a g i, then c h
    assert masked.astype(int).tolist() == [
        [0, 1, 1, 1, 0, 0, 1, 0],  # a: c is its own too, the other b is, a is itself
        [1, 0, 1, 1, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],  # d: the other b
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0, 0],  # b: itself
    ]
    packed = pairs.pack(rows[:2])
    assert packed.starts.tolist() == [0, len(packed.ids) // 2, len(packed.ids)]
    assert (packed.ids[: len(packed.ids) // 2] == packed.ids[len(packed.ids) // 2 :]).all()


def test_batches_of_one_and_the_same_pair_cost_nothing(model, tmp_path):
    with pytest.warns(UserWarning, match="^EmbedderTrainer: all 8 pairs are the same one, .*: the loss is 0") as warned:
        _, result = tune(model, tmp_path / "tuned", [("alice", "bob")] * 8, dropout=0)
    assert result.losses == [0.0] * 4 and warned[0].filename == pair_models.__file__


def test_retrieval_score_by_hand(model):
    pairs = tokenized(model, [("a", "b"), ("a", "c"), ("d", "e"), ("f", "d", "g")])
    vectors = {"a": (1, 0), "b": (1, 1), "c": (0, 1), "d": (0, 1), "e": (1, 0), "f": (2, 3), "g": (1, 1)}
    # numbers are given in the order of: all anchors, all positives, all negatives
    numbers = list(dict.fromkeys([*"aadf", *"bced", *"g"]))
    score = retrieval_score(pairs, lambda rows: np.array([vectors[numbers[row]] for row in rows], np.float32))
    # among b c d e g. a: e is nearest, then b and g are alike, so its b is third; d: all but itself, e comes last, fourth;
    # f: nearest are b and g, then d and c alike, so its d is fourth
    assert (score.anchors, score.texts) == (3, 5)
    assert score.accuracy == 0 and score.mrr == pytest.approx((1 / 3 + 1 / 4 + 1 / 4) / 3)
    assert str(score) == "top-1 accuracy 0.0%, MRR@10 0.278 (3 among 5 texts)"


def test_all_pairs_of_an_anchor_are_held_out_together(model, tmp_path):
    pairs = [(anchor, f"{positive} {word}") for anchor, positive in made_pairs(20) for word in ("alice", "bob")]
    trainer = fm.EmbedderTrainer(model, pairs, out=tmp_path / "tuned", holdout=0.25, progress=False)
    assert (len(trainer.held_out), len(trainer.pairs)) == (10, 30)
    held = {pair.anchor for pair in trainer.held_out._pairs}
    assert len(held) == 5 and held.isdisjoint(pair.anchor for pair in trainer.pairs._pairs)


def test_prompts_stand_before_texts_and_the_models_own_is_the_default(model, tmp_path):
    def trainer(**options):
        return fm.EmbedderTrainer(model, made_pairs(4), out=tmp_path / "tuned", **{**QUICK, **options})

    plain = trainer().pairs.lengths
    given = trainer(anchor_prompt="query : ", text_prompt="by ").pairs
    assert set(given.lengths[given.anchors] - plain[given.anchors]) == {2}
    assert set(given.lengths[given.positives] - plain[given.positives]) == {1}
    prompts = {"query": "query : ", "passage": "by ", "q": "the old "}
    write_json(model / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "q"})
    assert (trainer().pairs.lengths == given.lengths).all()  # the default is for what has none of its own
    assert trainer()._record(EmbedderResult(model))["prompts"] == {"anchor": "query : ", "text": "by "}
    write_json(model / "config_sentence_transformers.json", {"prompts": {"q": "query : "}, "default_prompt_name": "q"})
    assert (trainer().pairs.lengths == plain + 2).all() and (
        trainer(anchor_prompt="", text_prompt="").pairs.lengths == plain
    ).all()


# ---- interrupted, broken ----


def test_ctrl_c_finishes_the_step_and_saves(model, tmp_path, monkeypatch):
    trainer = fm.EmbedderTrainer(model, made_pairs(40), out=tmp_path / "tuned", **{**QUICK, "steps": 50})
    one_step = trainer._one_step

    def interrupted(step, chosen):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return one_step(step, chosen)

    monkeypatch.setattr(trainer, "_one_step", interrupted)
    result = trainer.fit()
    assert (result.reason, result.steps, result.saved, result.after) == ("interrupted", 3, True, None)
    assert json.loads((tmp_path / "tuned" / "training.json").read_text())["reason"] == "interrupted"
    assert fm.load(tmp_path / "tuned").embed(TEXTS).shape == (4, 32)


def test_ctrl_c_before_the_first_step_writes_nothing(model, tmp_path, monkeypatch):
    trainer = fm.EmbedderTrainer(model, made_pairs(40), out=tmp_path / "tuned", **{**QUICK, "holdout": 0.5})
    monkeypatch.setattr(embedder, "retrieval_score", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    result = trainer.fit()
    assert (result.reason, result.steps, result.saved) == ("interrupted", 0, False) and not (
        tmp_path / "tuned"
    ).exists()


def test_a_loss_that_is_no_number_ends_it_with_nothing_written(model, tmp_path):
    trainer = fm.EmbedderTrainer(model, made_pairs(40), out=tmp_path / "tuned", **QUICK)
    trainer.encoder.parameters["layers.1.feedforward.down.bias"][3] = np.nan
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan; nothing was written"):
        trainer.fit()
    assert not (tmp_path / "tuned").exists()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch": 1}, "EmbedderTrainer: batch must be >= 2; got 1"),
        ({"epochs": 0}, "EmbedderTrainer: epochs must be >= 1; got 0"),
        ({"steps": 0}, "EmbedderTrainer: steps must be >= 1; got 0"),
        ({"scale": 2000}, "EmbedderTrainer: scale must be > 0 and <= 1000.0; got 2000"),
        ({"holdout": 1}, "EmbedderTrainer: holdout must be >= 0 and < 1; got 1"),
        ({"schedule": "step"}, "EmbedderTrainer: schedule must be one of 'cosine', 'linear', 'constant'; got 'step'"),
        ({"precision": "half"}, "EmbedderTrainer: precision must be one of 'float32', 'bfloat16'; got 'half'"),
        (
            {"warmup": 4, "steps": 3},
            "EmbedderTrainer: warmup must be at most 3, all steps, or the peak is never reached; got 4",
        ),
        ({"max_length": 65}, "EmbedderTrainer: max_length must be at most 64, the model's limit; got 65"),
    ],
)
def test_wrong_settings(model, tmp_path, options, text):
    with pytest.raises(ValueError) as error:
        fm.EmbedderTrainer(model, made_pairs(8), out=tmp_path / "tuned", **options)
    assert str(error.value) == text


def test_fields_are_names_not_letters(model, tmp_path):
    text = "EmbedderTrainer: fields must be names, in a list or tuple; got the string 'qa'"
    (tmp_path / "pairs.jsonl").write_text('{"q": "a", "a": "b"}\n' * 8)
    for pairs in (tmp_path / "pairs.jsonl", made_pairs(8)):
        with pytest.raises(ValueError) as error:
            fm.EmbedderTrainer(model, pairs, out=tmp_path / "tuned", fields="qa")
        assert str(error.value) == text
    with pytest.raises(ValueError, match="fields must be two or three names"):
        fm.EmbedderTrainer(model, tmp_path / "pairs.jsonl", out=tmp_path / "tuned", fields=["q"])


def test_one_pair_alone_has_nothing_to_be_told_from(model, tmp_path):
    text = "EmbedderTrainer: pairs must hold at least 2 to train on, one's texts are the other's negatives; got 1"
    with pytest.raises(ValueError) as error:
        fm.EmbedderTrainer(model, [("a", "b")], out=tmp_path / "tuned")
    assert str(error.value) == text


def test_a_mistyped_name_is_not_looked_for_elsewhere(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"^my-typo does not exist \(expected an encoder's folder, or org/name\)$"
    ):
        fm.EmbedderTrainer("my-typo", made_pairs(8), out=tmp_path / "tuned")
    with pytest.raises(
        FileNotFoundError, match="^sentence-transformers/all-my-typo is not in the cache"
    ):  # it looks like a name there
        fm.EmbedderTrainer("all-my-typo", made_pairs(8), out=tmp_path / "tuned", offline=True)


def test_models_that_cannot_be_trained(tmp_path):
    def refused(folder):
        with pytest.raises(ValueError) as error:
            fm.EmbedderTrainer(folder, made_pairs(8), out=tmp_path / "tuned")
        return str(error.value)

    text = "bert-classifier is a cross-encoder or classifier, which gives no vectors to train"
    assert refused(TINY / "bert-classifier") == text
    assert not (tmp_path / "tuned").exists()


def test_the_new_folder_must_be_new(model, tmp_path):
    for out, text in (
        (model, f"{model} holds files; choose a folder that is new or empty"),
        (model / "config.json", f"{model / 'config.json'} is a file; choose a folder that is new or empty"),
    ):
        with pytest.raises(FileExistsError) as error:
            fm.EmbedderTrainer(model, made_pairs(8), out=out)
        assert str(error.value) == text
    (tmp_path / "empty").mkdir()
    assert tune(model, tmp_path / "empty")[1].saved


def test_a_long_text_is_cut_with_one_warning(model, tmp_path):
    pairs = [*made_pairs(6), ("alice", "the bank by river " * 9), ("bob " * 40, "chloe " * 40)]
    with pytest.warns(UserWarning) as warned:
        trainer = fm.EmbedderTrainer(model, pairs, out=tmp_path / "tuned", max_length=20, **QUICK)
    (warning,) = warned
    assert (
        str(warning.message)
        == "pairs[7]: the anchor is longer than 20 tokens; it is cut, as others will be without a word"
    )
    assert warning.filename == __file__ and trainer.pairs.lengths.max() == 20


def test_what_would_not_fit_is_refused_before_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(embedder, "available_memory", lambda: 100_000)
    with pytest.raises(MemoryError) as error:
        fm.EmbedderTrainer(model, made_pairs(40), out=tmp_path / "tuned", **QUICK)
    assert str(error.value).startswith(
        "fine-tuning model on batches of 8 pairs, up to 80 tokens, needs at least 0.0 GB: "
    )
    assert str(error.value).endswith("Choose a smaller batch or max_length")
