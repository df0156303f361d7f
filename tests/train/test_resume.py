"""What a run may go on from: its own data, its own settings; damage is named, with the checkpoint that is whole."""

import json
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.data import Dataset, open_dataset, write_dataset
from fastmixer.data.shards import TRAIN, VALIDATION, write_shard
from fastmixer.text.assets import alice_text
from fastmixer.train.checkpoint import list_checkpoints
from fastmixer.train.metrics import read_metrics


@pytest.fixture
def stopped(tmp_path, new_trainer):
    """The folder of a run of 6 steps with checkpoints of steps 4 and 6."""
    new_trainer(tmp_path / "run").fit()
    return tmp_path / "run"


def _resume(folder, *arguments, **options):
    return fm.Trainer.resume(folder, *arguments, **{"progress": False, "steps": 8, **options})


def _change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def _state(folder):
    return list_checkpoints(folder)[-1] / "state.json"


# ---- the data ----


def test_data_of_another_tokenizer_is_refused(tmp_path, new_model, tokenizer, dataset):
    other = fm.train_tokenizer(alice_text()[1000:4000], "characters")
    model = fm.Transformer(fm.ModelConfig(vocab=200, context=8, dim=16, layers=1, heads=2))
    (tmp_path / "page.txt").write_text(alice_text()[:3000])
    text = f"^Trainer: {dataset.train.path} was made with another tokenizer: it says {dataset.train.digest.hex()}, "
    with pytest.raises(ValueError, match=text):
        fm.Trainer(model, other, dataset, folder=tmp_path / "run", time=8)
    mixed = Dataset(tmp_path, dataset.train, write_dataset(tmp_path / "page.txt", other, tmp_path / "other").validation)
    with pytest.raises(ValueError, match=f"^Trainer: {mixed.validation.path} was made with another tokenizer than {mixed.train.path}$"):
        fm.Trainer(model, tokenizer, mixed, folder=tmp_path / "run", time=8)
    with pytest.raises(TypeError, match="^Trainer: tokenizer must be a Tokenizer; got NoneType$"):
        fm.Trainer(model, None, dataset, folder=tmp_path / "run", time=8)


def _turned(dataset, folder):
    """As many tokens, in another order."""
    folder.mkdir()
    for name, shard in ((TRAIN, dataset.train), (VALIDATION, dataset.validation)):
        write_shard(folder / name, np.array(shard.tokens[::-1]), shard.vocab, shard.digest)
    return open_dataset(folder)


def test_a_run_goes_on_with_its_own_data_only(tmp_path, stopped, dataset):
    other = _turned(dataset, tmp_path / "other")
    before = (stopped / "run.json").read_text()
    trainer = _resume(stopped, other)
    text = f"{_state(stopped)}: BatchReader: {other.train.path} holds other tokens than those that were read: their checksum is "
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        trainer.fit()
    assert (stopped / "run.json").read_text() == before
    moved = tmp_path / "moved"
    shutil.copytree(dataset.folder, moved)
    assert _resume(stopped, open_dataset(moved)).fit().step == 8
    assert json.loads((stopped / "run.json").read_text())["data"] == str(moved)


def test_a_state_from_before_it_told_of_the_data_goes_on(tmp_path, stopped):
    saved = json.loads(_state(stopped).read_text())
    for name in ("crc", "tokenizer"):
        del saved["state"]["reader"][name]
    _state(stopped).write_text(json.dumps(saved))
    assert _resume(stopped).fit().step == 8


# ---- the settings ----


def test_a_minimum_above_the_peak_stays_as_run_json_says(tmp_path, stopped):
    settings = json.loads((stopped / "run.json").read_text())["settings"]
    assert settings["min_learning_rate"] == 1e-4
    _change(stopped / "run.json", settings={**settings, "learning_rate": 5e-5})
    trainer = _resume(stopped)
    assert trainer.settings.lowest_rate == 1e-4 and trainer.fit().step == 8
    assert read_metrics(stopped)[-2]["learning_rate"] == pytest.approx(1e-4)


def test_fewer_steps_than_were_done_are_refused(stopped):
    before = (stopped / "run.json").read_text()
    with pytest.raises(ValueError, match="^Trainer: steps must be at least 6, which this run has reached; got 3$"):
        _resume(stopped, steps=3).fit()
    assert (stopped / "run.json").read_text() == before
    assert not _resume(stopped, steps=6).fit().losses


def test_without_clipping(tmp_path, new_trainer):
    trainer = new_trainer(tmp_path, clip_norm=None)
    assert trainer.optimizer.clip_norm is None
    trainer.fit()
    assert _resume(tmp_path).settings.clip_norm is None


def test_patience_needs_something_to_evaluate(tmp_path, new_model, tokenizer, stopped):
    with pytest.raises(ValueError, match=r"^Trainer: patience 2 counts evaluations and needs evaluate_every >= 1; got 0$"):
        _resume(stopped, patience=2, evaluate_every=0)
    (tmp_path / "page.txt").write_text(alice_text()[:300])
    for part, tokens in ((0, 0), (1 / 300, 1)):
        data = write_dataset(tmp_path / "page.txt", tokenizer, tmp_path / f"{tokens}", validation_fraction=part)
        text = f"Trainer: patience 2 counts validation losses and needs a validation part of at least 2 tokens; {data.validation.path} has {tokens}"
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            fm.Trainer(new_model(), tokenizer, data, folder=tmp_path / "new", time=8, patience=2)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("", "must have 1 to 8 tokens, the model's context; got 0: ''"),
        ("Alice was", "must have 1 to 8 tokens, the model's context; got 9: 'Alice was'"),
        ("a\udce9", r": encode: character 1 is '\udce9', half a surrogate pair; no text holds that alone"),
    ],
)
def test_a_sample_prompt_is_judged_before_the_run(tmp_path, new_trainer, stopped, prompt, text):
    with pytest.raises(ValueError, match=rf"^Trainer: sample_prompt ?{re.escape(text)}$"):
        new_trainer(tmp_path / "new", sample_every=3, sample_prompt=prompt)
    with pytest.raises(ValueError, match=r"^Trainer: sample_prompt"):
        _resume(stopped, sample_every=3, sample_prompt=prompt)
    new_trainer(tmp_path / "new", sample_prompt=prompt)  # which none is made from


def test_the_precision_that_was_asked_stays_asked(tmp_path, tokenizer, new_model, new_trainer, monkeypatch):
    monkeypatch.setattr("fastmixer.model.precision.is_fast", lambda: True)
    model = fm.Transformer(new_model().config, seed=1, tokenizer=tokenizer, precision="bfloat16")
    new_trainer(tmp_path, model).fit()
    monkeypatch.setattr("fastmixer.model.precision.is_fast", lambda: False)  # on another machine
    with pytest.warns(RuntimeWarning, match="going on in float32"):
        trainer = _resume(tmp_path)
    assert trainer.model.precision == "float32" and trainer.fit().step == 8
    assert json.loads((tmp_path / "run.json").read_text())["model"]["precision"] == "bfloat16"
    trainer = _resume(tmp_path, force_precision=True, steps=9)
    assert trainer.model.precision == "bfloat16" and trainer.fit().step == 9
    assert json.loads((tmp_path / "run.json").read_text())["model"]["force_precision"] is True


# ---- damage ----


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"settings": {"steps": 3, "speed": 9}}, "settings has an unknown field 'speed'; known are accumulate, batch, "),
        ({"settings": {"steps": "a"}}, "TrainSettings: steps must be an integer; got str"),
        ({"model": {"colour": 1}}, "model has an unknown field 'colour'; known are checkpoint_activations, force_precision, "),
        ({"model": {"precision": "int8"}}, "model: precision must be one of 'float32', 'bfloat16'; got 'int8'"),
        ({"model": {"sparse_embedding": 1}}, "model: sparse_embedding must be true or false; got 1"),
    ],
)
def test_a_damaged_run_json_is_named(stopped, fields, text):
    _change(stopped / "run.json", **fields)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{stopped}/run.json: {text}')}"):
        _resume(stopped)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"state": {}}, "state's 'reader' must be an object; it is missing"),
        ({"state": {"reader": 1}}, "state's 'reader' must be an object; got 1"),
        ({"state": {"reader": {}, "best": "a", "without_better": 0}}, "state's 'best' must be a number or null; got 'a'"),
        ({"state": {"reader": {}, "best": None}}, "state's 'without_better' must be an integer; it is missing"),
        ({"state": []}, "field 'state' must be an object; got []"),
        ({"step": "6"}, "field 'step' must be an integer; got 6"),
        ({"files": []}, "field 'files' must be an object; got []"),
        ({"files": {}}, "field 'files' must tell of config.json; it tells of nothing"),
        ({"files": dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json", "optimizer.safetensors"), 1)},
         "field 'files' must have bytes and blake2b of config.json; got 1"),
    ],
)  # fmt: skip
def test_a_damaged_state_is_named_and_the_checkpoint_that_is_whole(stopped, fields, text):
    *_, older, newest = list_checkpoints(stopped)
    _change(newest / "state.json", **fields)
    text = f"{newest / 'state.json'}: {text}. The checkpoint {older} is whole: to go on from it, delete {newest} and resume"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        _resume(stopped).fit()
    shutil.rmtree(newest)
    assert _resume(stopped).fit().step == 8


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json", "state.json"])
def test_a_missing_file_is_named_before_anything_is_opened(stopped, name):
    *_, older, newest = list_checkpoints(stopped)
    (newest / name).unlink()
    with pytest.raises(ValueError, match=rf"^{newest / name} (is missing|does not exist)\. The checkpoint {older} is whole: "):
        _resume(stopped)
    (older / name).unlink()
    with pytest.raises(ValueError, match=rf"^{newest / name} (is missing|does not exist)\. There is no older checkpoint that is whole$"):
        _resume(stopped)


def test_a_run_without_a_checkpoint(stopped):
    shutil.rmtree(stopped / "checkpoints")
    with pytest.raises(FileNotFoundError, match=f"^{stopped} has no checkpoint to resume from$"):
        _resume(stopped)


def test_a_broken_log_is_no_reason_not_to_go_on(stopped):
    path = stopped / "metrics.jsonl"
    rows = read_metrics(stopped)
    path.write_bytes(b'{"x": 1}\n[]\n\xff\xfe\n' + path.read_bytes() + b'{"step": 7, "lo')
    text = re.escape(f"{path}, line 1 must be an object with an integer 'step'; got {{\"x\": 1}}. This line and 2 more are left out; ")
    with pytest.warns(RuntimeWarning, match=f"^{text}") as warned:
        assert _resume(stopped).fit().step == 8
    assert len(warned) == 1
    assert read_metrics(stopped)[: len(rows)] == rows and [row["step"] for row in read_metrics(stopped)][len(rows) :] == [7, 8, 8]


# A run whose files may not become longer from its second checkpoint on, as on a full disk.
FULL = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    import fastmixer as fm
    from fastmixer.train import trainer as module

    real = module.save_checkpoint

    def save(run, step, *rest):
        if step == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        return real(run, step, *rest)

    module.save_checkpoint = save
    try:
        fm.Trainer.resume(Path(sys.argv[1]), progress=False, steps=8).fit()
    except OSError as error:
        print(error)
""")


def test_a_full_disk_while_tensors_are_written(stopped):
    pytest.importorskip("resource")
    result = subprocess.run([sys.executable, "-c", FULL, str(stopped)], capture_output=True, text=True, timeout=120)
    kept = list_checkpoints(stopped)[-1]
    assert result.stdout == f"[Errno 27] step 8 could not be saved (File too large); the checkpoint {kept} is intact\n", result.stderr
    assert kept.name == "step-00000006" and _resume(stopped).fit().step == 8


# ---- two at once ----


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, new_trainer):
    refused = []

    def second(message):
        code = "import sys, fastmixer as fm; fm.Trainer.resume(sys.argv[1])"
        result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
        refused.append(result.stderr.splitlines()[-1])

    first = new_trainer(tmp_path, save_every=1, evaluate_every=0, on_message=second)
    late = new_trainer(tmp_path)
    first.fit()
    assert refused[-1] == f"OSError: {tmp_path} is in use: another run writes there; wait for its end, or choose another folder"
    with pytest.raises(FileExistsError, match="already holds a run"):
        late.fit()
