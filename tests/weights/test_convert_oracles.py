"""What we write, opened by others: llama.cpp (the xllamacpp package) and transformers. Skipped where they are not installed."""

import numpy as np
import pytest
from random_models import CONFIGS, random_source

from fastmixer.model.decoder import Decoder
from fastmixer.weights.convert import convert
from fastmixer.weights.gguf_model import open_gguf
from fastmixer.weights.source import open_source

IDS = [5, 17, 300, 42, 42, 7, 101, 256, 3, 280, 11, 64]
TOP = 10
LIMIT = 1e-3  # llama.cpp looks its exponentials up in tables of float16


def llama_cpp_reply(path, prompt, tokens):
    """llama.cpp's greedy reply: (ids, {id: logprob} of the TOP likeliest at each step)."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 256, 1, False, -1
    params.cpuparams.n_threads = 1  # more of them wait for each other in a loop: a minute where something else runs
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    request = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "n_probs": TOP, "ignore_eos": True}
    reply = xllamacpp.Server(params).handle_completions(request)
    steps = reply["choices"][0]["logprobs"]["content"]
    return [step["id"] for step in steps], [{top["id"]: top["logprob"] for top in step["top_logprobs"]} for step in steps]


def transformers_logprobs(folder, ids):
    """transformers' logprobs after the last of ids: float [vocab]."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0], -1).numpy()


@pytest.fixture(scope="module")
def smollm2_reply(smollm2_path):
    """(prompt, ids, steps) of the file as it came."""
    prompt = open_gguf(smollm2_path).tokenizer.encode("The capital of France is").tolist()
    return prompt, *llama_cpp_reply(smollm2_path, prompt, 12)


@pytest.mark.parametrize("type_name", [None, "BF16", "Q8_0"])
def test_llama_cpp_says_the_same_from_our_file(tmp_path, smollm2_path, smollm2_reply, type_name):
    """As stored: the very numbers. In a finer type: the same greedy text."""
    prompt, expected_ids, expected = smollm2_reply
    path = convert(open_gguf(smollm2_path), tmp_path / "m.gguf", type_name)
    ids, steps = llama_cpp_reply(path, prompt, 12)
    assert ids == expected_ids
    if type_name is None:
        assert steps == expected


@pytest.mark.parametrize("kind", CONFIGS)
def test_llama_cpp_and_transformers_agree_on_what_we_write(tmp_path, kind):
    """The same random model through both writers: the two libraries, which know nothing of us, compute the same."""
    pytest.importorskip("xllamacpp")
    source = random_source(kind)
    _, steps = llama_cpp_reply(convert(source, tmp_path / "m.gguf"), IDS, 2)
    logprobs = transformers_logprobs(convert(source, tmp_path / "folder"), IDS)[-1]
    assert len(steps[0]) == TOP
    for token, logprob in steps[0].items():
        assert abs(logprobs[token] - logprob) < LIMIT, (token, logprobs[token], logprob)
    assert set(np.argsort(-logprobs)[: TOP - 2]) <= set(steps[0])


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_transformers_computes_the_activation_that_we_write(tmp_path, activation):
    pytest.importorskip("torch")
    source = random_source("llama", activation=activation)
    decoder = Decoder(source, "float32", progress=False)
    tables, starts = np.zeros((1, 1, 1), np.int32), np.array([0, len(IDS)])
    ours, _ = decoder.forward(np.array(IDS), starts, np.array([0]), decoder.new_pages(1, "float32"), tables)
    theirs = transformers_logprobs(convert(source, tmp_path / "folder"), IDS)[-1]
    np.testing.assert_allclose(ours[0] - ours[0][0], theirs - theirs[0], atol=5e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_from_our_gguf_file_has_the_same_logits(tmp_path, kind):
    pytest.importorskip("transformers")
    source = random_source(kind)
    convert(source, tmp_path / "first")
    convert(open_gguf(convert(source, tmp_path / "m.gguf")), tmp_path / "second")
    first, second = (transformers_logprobs(tmp_path / name, IDS) for name in ("first", "second"))
    np.testing.assert_allclose(first, second, atol=2e-5)


SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5,
    "original_max_position_embeddings": 32,
}  # fmt: skip
THEIRS = {
    "LlamaForCausalLM": ("LlamaConfig", {**SIZES, "rope_parameters": LLAMA3}),
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "Qwen3ForCausalLM": ("Qwen3Config", {**SIZES, "head_dim": 32}),
    "Gemma2ForCausalLM": ("Gemma2Config", {**SIZES, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5}),
}


@pytest.mark.parametrize("model_class", THEIRS)
def test_a_model_that_transformers_made_keeps_its_logits(tmp_path, model_class):
    """Their folder -> our folder, and their folder -> GGUF -> our folder."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config_class, fields = THEIRS[model_class]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.15)
    model.save_pretrained(tmp_path / "theirs")
    source = open_source(tmp_path / "theirs")
    convert(source, tmp_path / "ours")
    convert(open_gguf(convert(source, tmp_path / "m.gguf")), tmp_path / "through")
    expected = transformers_logprobs(tmp_path / "theirs", IDS)
    assert np.ptp(expected) > 1
    for name in ("ours", "through"):
        np.testing.assert_allclose(transformers_logprobs(tmp_path / name, IDS), expected, atol=2e-5, err_msg=name)


def test_transformers_reads_the_tokenizer_of_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    source = random_source("llama")
    folder = convert(source, tmp_path / "folder")
    text = "Alice introduced Bob to Chloe.\n  The bank by the river: 1234 é!"
    found = transformers.AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    assert found == source.tokenizer.encode(text).tolist()
