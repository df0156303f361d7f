"""Folders of encoders: configurations, names of tensors, sentence-transformers' files; and damage of every kind, by name."""

import json
import re
import shutil
from fnmatch import fnmatch

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_encoders import TINY, write_dense, write_json, write_modules, write_pooling

from fastmixer.model.encoder_config import EncoderConfig, HeadConfig, encoder_shapes
from fastmixer.weights import hub
from fastmixer.weights.encoder_architectures import ENCODERS, read_encoder_config
from fastmixer.weights.encoder_folder import is_encoder_folder, open_encoder

MODELS = sorted(path.name for path in TINY.iterdir() if path.is_dir())


def values_of(name):
    return json.loads((TINY / name / "config.json").read_text())


@pytest.fixture
def folder(tmp_path):
    """copy(name): a tiny model's folder to change."""

    def copy(name="bert"):
        return shutil.copytree(TINY / name, tmp_path / name)

    return copy


def change(folder, name="config.json", drop=(), **fields):
    values = json.loads((folder / name).read_text())
    values = {key: value for key, value in {**values, **fields}.items() if key not in drop}
    (folder / name).write_text(json.dumps(values))


def tensors_of(folder):
    """The file's tensors, as float32 (NumPy knows no bfloat16)."""
    raw = (folder / "model.safetensors").read_bytes()
    header = int.from_bytes(raw[:8], "little")
    found = {}
    for name, info in json.loads(raw[8 : 8 + header]).items():
        if name != "__metadata__":
            start, stop = (8 + header + at for at in info["data_offsets"])
            bits = np.frombuffer(raw[start:stop], np.uint16).astype(np.uint32) << 16
            found[name] = bits.view(np.float32).reshape(info["shape"])
    assert found
    return found


def save(folder, tensors):
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, str(folder / "model.safetensors"))


# ---- configurations ----


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_that_is_expected_is_there(name):
    source = open_encoder(TINY / name)
    shapes = encoder_shapes(source.config)
    assert {tensor: source.tensors[tensor].values().shape for tensor in source.tensors} == shapes
    assert source.name == name and source.path == TINY / name and is_encoder_folder(TINY / name)


def test_what_the_architectures_are():
    bert = EncoderConfig(vocab=96, context=64, dim=32, layers=2, heads=4, hidden=48, token_types=2)
    assert open_encoder(TINY / "bert").config == bert
    roberta = open_encoder(TINY / "roberta-classifier").config
    assert roberta == EncoderConfig(
        vocab=96, context=64, dim=32, layers=2, heads=4, hidden=48, token_types=2, head=HeadConfig(1, "tanh")
    )
    distilbert = open_encoder(TINY / "distilbert-classifier").config
    assert distilbert.token_types == 0 and distilbert.head == HeadConfig(3, "relu")
    assert open_encoder(TINY / "xlm-roberta").config.activation == "relu"
    mpnet = open_encoder(TINY / "mpnet").config
    assert (mpnet.relative_buckets, mpnet.context, mpnet.token_types) == (32, 160, 0)
    modern = open_encoder(TINY / "modernbert-classifier").config
    assert modern == EncoderConfig(
        vocab=96, context=64, dim=32, layers=3, heads=4, hidden=48, placement="pre", gated=True, norm_epsilon=1e-5,
        learned_positions=False, rotary_base=160_000.0, local_rotary_base=10_000.0, window=5,
        local_layers=(False, True, False), head=HeadConfig(1, "gelu", pooling="mean", bias=True, has_norm=True),
    )  # fmt: skip


def test_defaults_are_those_of_transformers():
    base = read_encoder_config({"model_type": "bert"}, "x")
    assert base == EncoderConfig(vocab=30522, context=512, dim=768, layers=12, heads=12, hidden=3072, token_types=2)
    roberta = read_encoder_config({"model_type": "roberta"}, "x")
    assert (roberta.vocab, roberta.context) == (50265, 510)
    for name in ("xlm-roberta", "camembert"):
        assert (read_encoder_config({"model_type": name}, "x").vocab) == 30522
    assert read_encoder_config({"model_type": "distilbert"}, "x").layers == 6
    assert read_encoder_config({"model_type": "mpnet"}, "x").vocab == 30527
    modern = read_encoder_config({"model_type": "modernbert"}, "x")
    assert (modern.layers, modern.hidden, modern.context, modern.window) == (22, 1152, 8192, 64)
    assert modern.local_layers[:7] == (False, True, True, False, True, True, False)
    assert not (modern.attention_bias or modern.feedforward_bias or modern.norm_bias)


def test_activations_by_all_their_names():
    for ours, names in {
        "gelu": ("gelu", "gelu_python"), "silu": ("silu", "swish"), "relu": ("relu",),
        "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"),
    }.items():  # fmt: skip
        for name in names:
            assert read_encoder_config({"model_type": "bert", "hidden_act": name}, "x").activation == ours


def test_older_fields_of_modernbert():
    values = {
        **values_of("modernbert"), "rope_parameters": None, "layer_types": None, "global_attn_every_n_layers": 3,
        "global_rope_theta": 5000.0, "local_rope_theta": 300.0,
    }  # fmt: skip
    config = read_encoder_config(values, "x")
    assert (config.rotary_base, config.local_rotary_base) == (5000.0, 300.0)
    assert config.local_layers == (False, True, True)
    everywhere = read_encoder_config({**values, "global_attn_every_n_layers": 1}, "x")
    assert everywhere.window is None and everywhere.local_layers == () and everywhere.local_rotary_base is None


@pytest.mark.parametrize(
    ("name", "fields", "match"),
    [
        ("bert", {"model_type": "t5"}, "model_type must be one of bert, distilbert, roberta, xlm-roberta, camembert, mpnet, modernbert; got 't5'"),
        ("bert", {"model_type": None}, "model_type is missing; expected one of bert"),
        ("bert", {"hidden_size": 0}, "hidden_size must be an integer from 1 to 1048576; got 0"),
        ("bert", {"hidden_size": "32"}, "hidden_size must be an integer"),
        ("bert", {"num_attention_heads": 5}, "num_attention_heads must be a divisor of hidden_size 32; got 5"),
        ("bert", {"hidden_act": "mish"}, "hidden_act must be one of silu, swish, gelu"),
        ("bert", {"layer_norm_eps": 0}, "layer_norm_eps must be a finite number > 0; got 0"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute' (nothing else is known); got 'relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder must be false (nothing else is known); got True"),
        ("bert", {"quantization_config": {"bits": 4}}, "quantization_config must be absent"),
        ("bert", {"vocab_size": 1 << 24, "hidden_size": 1 << 20, "num_attention_heads": 1}, "parameters; expected at most"),
        ("bert-classifier", {"architectures": "BertForSequenceClassification"}, "architectures must be a list of names"),
        ("roberta", {"pad_token_id": 0}, "pad_token_id must be 1 (nothing else is known); got 0"),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings must be an integer from 3 to"),
        ("distilbert", {"n_heads": 5}, "n_heads must be a divisor of hidden_size 32; got 5"),
        ("distilbert", {"activation": "mish"}, "activation must be one of"),
        ("mpnet", {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets must be 32 (nothing else is known); got 64"),
        ("modernbert", {"norm_eps": -1}, "norm_eps must be a finite number > 0; got -1"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types must be a list of 3 of full_attention, sliding_attention"),
        ("modernbert", {"local_attention": 1}, "local_attention must be an integer from 2"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_parameters.full_attention.rope_type must be one of default; got 'yarn'"),
        ("modernbert", {"num_attention_heads": 32}, "dim / heads must be even for rotation; got 1"),
        ("modernbert-classifier", {"classifier_pooling": "max"}, "classifier_pooling must be one of cls, mean; got 'max'"),
        ("bert-classifier", {"sentence_transformers": {"activation_fn": "torch.nn.Tanh"}}, "activation_fn must be torch.nn's Sigmoid or Identity; got 'torch.nn.Tanh'"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(folder, name, fields, match):
    copy = folder(name)
    change(copy, **fields)
    with pytest.raises(ValueError, match=f"^{re.escape(str(copy / 'config.json'))}: .*{re.escape(match)}"):
        open_encoder(copy)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dim": 0}, "dim must be >= 1; got 0"),
        ({"heads": 5}, "dim must be a multiple of heads 5; got 32"),
        ({"placement": "sandwich"}, "placement must be one of post, pre; got 'sandwich'"),
        ({"activation": "tanh"}, "activation must be one of gelu, gelu_tanh, silu, relu; got 'tanh'"),
        ({"relative_buckets": 6}, "relative_buckets must be a multiple of 4; got 6"),
        ({"window": 5}, "window must be given where local_layers are, and only there; got 5"),
        ({"local_layers": (True, False)}, "window must be given where local_layers are, and only there; got None"),
        ({"window": 0, "local_layers": (True, False)}, "window must be >= 1; got 0"),
        ({"window": 5, "local_layers": (True,)}, "local_layers must be empty or 2 flags; got 1"),
    ],
)
def test_a_configuration_checks_itself(changes, match):
    sizes = {"vocab": 9, "context": 8, "dim": 32, "layers": 2, "heads": 4, "hidden": 8}
    with pytest.raises(ValueError, match=f"^EncoderConfig: {re.escape(match)}$"):
        EncoderConfig(**{**sizes, **changes})


# ---- tensors ----


def test_names_of_the_first_converted_files(folder):
    copy = folder()
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors_of(copy).items()
    }
    old["bert.embeddings.position_ids"] = np.zeros((1, 64), np.float32)
    old["cls.predictions.bias"] = np.zeros(96, np.float32)
    expected = open_encoder(copy)
    save(copy, old)
    source = open_encoder(copy)
    for name in expected.tensors:
        np.testing.assert_array_equal(source.tensors[name].values(), expected.tensors[name].values())


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("bert", "encoder.layer.1.output.dense.bias"),
        ("bert-classifier", "pooler.dense.weight"),
        ("roberta-classifier", "classifier.out_proj.weight"),
        ("distilbert", "embeddings.position_embeddings.weight"),
        ("mpnet", "encoder.relative_attention_bias.weight"),
        ("modernbert", "layers.2.attn.Wqkv.weight"),
        ("modernbert-classifier", "head.norm.bias"),
    ],
)
def test_a_missing_tensor_is_named(folder, name, tensor):
    copy = folder(name)
    tensors = tensors_of(copy)
    full = next(stored for stored in tensors if stored.endswith(tensor))
    save(copy, {stored: value for stored, value in tensors.items() if stored != full})
    with pytest.raises(ValueError, match=rf"model.safetensors: tensor {re.escape(tensor)} \[.*\] is missing"):
        open_encoder(copy)


def test_wrong_and_unknown_tensors_are_named(folder):
    copy = folder("modernbert")
    tensors = tensors_of(copy)
    save(copy, {**tensors, "embeddings.norm.bias": np.zeros(32, np.float32)})
    with pytest.raises(ValueError, match=r"tensor embeddings.norm.bias is not known in modernbert \(1 such tensors\)"):
        open_encoder(copy)
    save(copy, {**tensors, "layers.0.attn.Wqkv.weight": np.zeros((95, 32), np.float32)})
    with pytest.raises(ValueError, match=r"Wqkv.weight must have shape \[96, 32\]; got \[95, 32\]"):
        open_encoder(copy)


def test_a_head_of_another_size_is_named(folder):
    copy = folder("bert-classifier")
    change(copy, id2label={"0": "no", "1": "yes"})
    with pytest.raises(ValueError, match=r"tensor classifier.weight must have shape \[2, 32\]; got \[1, 32\]"):
        open_encoder(copy)


# ---- sentence-transformers' files ----


def test_a_folder_without_modules_has_no_say(folder):
    recipe = open_encoder(folder()).recipe
    assert (recipe.pooling, recipe.dense, recipe.normalize, recipe.max_length) == ("mean", (), False, None)
    assert (recipe.prompts, recipe.default_prompt, recipe.lower_case) == ({}, None, False)


@pytest.mark.parametrize(
    ("mode", "pooling", "named"),
    [
        ("mean_tokens", "mean", "mean"), ("cls_token", "cls", "cls"), ("max_tokens", "max", "max"),
        ("lasttoken", "last", "lasttoken"), ("weightedmean_tokens", "weightedmean", "weightedmean"),
        ("mean_sqrt_len_tokens", "mean_sqrt_len", "mean_sqrt_len_tokens"),
    ],
)  # fmt: skip
def test_pooling_is_read(folder, mode, pooling, named):
    copy = folder()
    write_modules(copy, ("Pooling", "1_Pooling"))
    write_pooling(copy, mode)
    assert open_encoder(copy).recipe.pooling == pooling
    assert not open_encoder(copy).recipe.normalize
    for value in (named, [named]):
        write_json(copy / "1_Pooling" / "config.json", {"embedding_dimension": 32, "pooling_mode": value})
        assert open_encoder(copy).recipe.pooling == pooling


@pytest.mark.parametrize(
    ("fields", "pooling"),
    [
        ({"pooling_mode": ["mean", "cls"]}, "mean+cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_lasttoken": True}, "cls+mean+last"),
        ({}, "mean"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}, "mean"),
    ],
)  # fmt: skip
def test_poolings_that_no_or_several_flags_choose(folder, fields, pooling):
    copy = folder()
    write_modules(copy, ("Pooling", "1_Pooling"))
    write_json(copy / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "include_prompt": False, **fields})
    recipe = open_encoder(copy).recipe
    assert (recipe.pooling, recipe.pools_prompt) == (pooling, False)
    assert recipe.vector_dim(32) == 32 * len(pooling.split("+"))


def test_the_whole_recipe_is_read(folder):
    copy = folder()
    write_modules(copy, ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_Normalize"))
    write_pooling(copy, "cls_token")
    weight, bias = write_dense(copy, "2_Dense", 32, 7, activation="torch.nn.modules.linear.Identity")
    write_json(copy / "sentence_bert_config.json", {"max_seq_length": 50, "do_lower_case": True})
    prompts = {"query": "Q: ", "document": ""}
    model = {"prompts": prompts, "default_prompt_name": "query", "truncate_dim": 5}
    write_json(copy / "config_sentence_transformers.json", model)
    recipe = open_encoder(copy).recipe
    assert (recipe.truncate_dim, recipe.vector_dim(32), recipe.pools_prompt, recipe.classifies) == (5, 5, True, False)
    assert (recipe.pooling, recipe.normalize, recipe.max_length, recipe.lower_case) == ("cls", True, 50, True)
    assert (recipe.prompts, recipe.default_prompt) == (prompts, "query")
    (stage,) = recipe.dense
    assert stage.activation == "none"
    np.testing.assert_array_equal(stage.weight.values(), weight)
    np.testing.assert_array_equal(stage.bias.values(), bias)


def test_the_transformer_may_lie_in_a_folder_of_its_own(tmp_path):
    shutil.copytree(TINY / "bert", tmp_path / "model" / "0_Transformer")
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    write_json(tmp_path / "model" / "modules.json", modules)
    write_pooling(tmp_path / "model", "max_tokens")
    write_json(tmp_path / "model" / "0_Transformer" / "sentence_bert_config.json", {"max_seq_length": 9})
    source = open_encoder(tmp_path / "model")
    assert source.path.name == "0_Transformer" and source.name == "model"
    assert (source.recipe.pooling, source.recipe.max_length) == ("max", 9)
    assert is_encoder_folder(tmp_path / "model")


MEAN = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({**MEAN, "pooling_mode_cls_token": "yes"}, "pooling_mode_cls_token must be true or false; got 'yes'"),
        ({**MEAN, "word_embedding_dimension": 33}, "word_embedding_dimension must be 32, the width of the encoder; got 33"),
        ({**MEAN, "include_prompt": 0}, "include_prompt must be true or false; got 0"),
        ({"pooling_mode": "median"}, "pooling_mode must be one of cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken, or a list of them; got 'median'"),
        ({"pooling_mode": "last"}, "pooling_mode must be one of cls, max"),
        ({"pooling_mode": ["mean", 3]}, "pooling_mode must be one of cls, max"),
        ({"pooling_mode": []}, "pooling_mode must be one of cls, max"),
    ],
)  # fmt: skip
def test_pooling_that_is_not_known_is_refused_by_name(folder, fields, match):
    copy = folder()
    write_modules(copy, ("Pooling", "1_Pooling"))
    write_json(copy / "1_Pooling" / "config.json", fields)
    with pytest.raises(ValueError, match=re.escape(match)) as error:
        open_encoder(copy)
    assert str(error.value).startswith(str(copy / "1_Pooling" / "config.json"))


@pytest.mark.parametrize(
    ("modules", "match"),
    [
        ("[", "is not JSON"),
        ("{}", "must hold a list of 1 to 16 modules"),
        ("[]", "must hold a list of 1 to 16 modules"),
        ("[3]", "module 0 must be an object; got 3"),
        ('[], "modules": []', "'modules' stands there twice"),
        ('[{"type": "a.Pooling"}]', "module 0: type must be sentence_transformers.models.Transformer; got 'a.Pooling'"),
        ('[{"path": ""}]', "module 0: type is missing"),
        ('[{"type": "a.Transformer"}, {"type": "a.LSTM"}]', "module 1: type must be sentence_transformers.models.Pooling or Dense or Normalize; got 'a.LSTM'"),
        ('[{"type": "a.Transformer", "path": "../x"}]', "module 0: path must be the name of a folder beside it, or empty; got '../x'"),
        ('[{"type": "a.Transformer", "path": ".."}]', "module 0: path must be the name of a folder"),
        ('[{"type": "a.Transformer", "path": "/etc"}]', "module 0: path must be the name of a folder"),
        ('[{"type": "a.Transformer", "path": ""}]', "names no Pooling: what one vector is made of is not said"),
    ],
)  # fmt: skip
def test_modules_that_are_damaged(folder, modules, match):
    copy = folder()
    (copy / "modules.json").write_text(modules)
    with pytest.raises(ValueError, match=re.escape(match)) as error:
        open_encoder(copy)
    assert str(error.value).startswith(str(copy / "modules.json"))


def test_modules_in_an_order_that_is_not_known(folder):
    copy = folder()
    write_pooling(copy, "mean_tokens")
    write_modules(copy, ("Pooling", "1_Pooling"), ("Normalize", "2"), ("Dense", "3_Dense"))
    with pytest.raises(ValueError, match="modules.json: Normalize must come last; nothing else is known"):
        open_encoder(copy)
    write_modules(copy, ("Pooling", "1_Pooling"), ("Normalize", "2"))
    write_json(copy / "2" / "config.json", {"module_input_name": "token_embeddings"})
    with pytest.raises(ValueError, match=r"2/config.json: module_input_name must be one of sentence_embedding; got 'token"):
        open_encoder(copy)
    write_modules(copy, ("Pooling", "1_Pooling"), ("Pooling", "1_Pooling"))
    with pytest.raises(ValueError, match="modules.json: Pooling must come once, before Dense"):
        open_encoder(copy)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"in_features": 31}, "in_features must be 32, the width of what comes before it; got 31"),
        ({"out_features": 8}, "tensor linear.weight must have shape [8, 32]; got [7, 32]"),
        ({"bias": False}, "tensor linear.bias is not known in a Dense module"),
        ({"activation_function": "torch.nn.modules.activation.Mish"}, "activation_function must be one of torch.nn's Tanh, Identity, ReLU, GELU, SiLU; got 'torch.nn.modules.activation.Mish'"),
        ({"use_residual": True}, "tensor residual.weight [7, 32] is missing"),
        ({"use_residual": "yes"}, "use_residual must be true or false; got 'yes'"),
        ({"module_input_name": "token_embeddings"}, "module_input_name must be one of sentence_embedding; got 'token_embeddings'"),
        ({"module_output_name": "scores"}, "module_output_name must be one of sentence_embedding; got 'scores'"),
    ],
)  # fmt: skip
def test_dense_stages_that_are_wrong(folder, fields, match):
    copy = folder()
    write_modules(copy, ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    write_pooling(copy, "mean_tokens")
    write_dense(copy, "2_Dense", 32, 7)
    change(copy, "2_Dense/config.json", **fields)
    with pytest.raises(ValueError, match=re.escape(match)) as error:
        open_encoder(copy)
    assert str(error.value).startswith(str(copy / "2_Dense"))


@pytest.mark.parametrize(
    ("name", "fields", "match"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length must be an integer from 1"),
        ("sentence_bert_config.json", {"do_lower_case": 1}, "do_lower_case must be true or false; got 1"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task must be one of feature-extraction, sequence-classification; got 'fill-mask'"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 9}}}, "processing_kwargs must be absent or empty"),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim must be an integer from 1 to"),
        ("config_sentence_transformers.json", {"prompts": {"a": 3}}, "prompts.a must be text; got 3"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts must be an object; got ['a']"),
        (
            "config_sentence_transformers.json",
            {"prompts": {"a": "A: "}, "default_prompt_name": "b"},
            "default_prompt_name must be one of a; got 'b'",
        ),
    ],
)  # fmt: skip
def test_lengths_and_prompts_that_are_wrong(folder, name, fields, match):
    copy = folder()
    write_json(copy / name, fields)
    with pytest.raises(ValueError, match=f"^{re.escape(str(copy / name))}: {re.escape(match)}"):
        open_encoder(copy)


# ---- files that are not there ----


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"])  # fmt: skip
def test_a_missing_file_is_named(folder, missing):
    copy = folder()
    write_modules(copy, ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    write_pooling(copy, "mean_tokens")
    write_dense(copy, "2_Dense", 32, 7)
    open_encoder(copy)
    (copy / missing).unlink()
    with pytest.raises(FileNotFoundError) as error:
        open_encoder(copy)
    place, name = (copy / missing).parent, (copy / missing).name
    assert str(place) in str(error.value) and name in str(error.value)


def test_pickles_are_refused(folder):
    copy = folder()
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin"):
        open_encoder(copy)


def test_what_is_no_encoder(tmp_path):
    assert not is_encoder_folder(tmp_path)
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    assert not is_encoder_folder(tmp_path)
    with pytest.raises(ValueError, match="model_type must be one of bert.*; got 'llama'"):
        open_encoder(tmp_path)
    with pytest.raises(FileNotFoundError, match="a/b/c does not exist"):
        open_encoder("a/b/c")
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        open_encoder(tmp_path / "missing")


def test_a_name_alone_is_one_of_sentence_transformers(monkeypatch):
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return TINY / "bert"

    monkeypatch.setattr("fastmixer.weights.encoder_folder.download", download)
    assert open_encoder("all-MiniLM-L6-v2", offline=True).name == "all-MiniLM-L6-v2"
    assert open_encoder("BAAI/bge-small-en", revision="v1").name == "BAAI/bge-small-en"
    assert open_encoder(TINY / "bert", name="called so").name == "called so"
    for mistyped in ("LaBSE", "berts", "all-MiniLM.gguf"):  # which fm.load does not look for either
        with pytest.raises(FileNotFoundError, match=f"^{mistyped} does not exist"):
            open_encoder(mistyped)
    assert asked == [
        ("sentence-transformers/all-MiniLM-L6-v2", {"offline": True, "revision": None}),
        ("BAAI/bge-small-en", {"offline": None, "revision": "v1"}),
    ]


def test_the_hub_is_asked_for_every_file_of_these():
    wanted = (
        "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json",
        "2_Dense/config.json", "2_Dense/model.safetensors", "0_Transformer/tokenizer.json",
    )  # fmt: skip
    assert all(any(fnmatch(name, pattern) for pattern in hub.FILES) for name in wanted)
    unwanted = ("2_Dense/pytorch_model.bin", "onnx/model.onnx", "openvino/openvino_model.bin", "tf_model.h5")
    assert not any(fnmatch(name, pattern) for name in unwanted for pattern in hub.FILES)


def test_every_architecture_has_a_tiny_model():
    assert {values_of(name)["model_type"] for name in MODELS} == set(ENCODERS)
