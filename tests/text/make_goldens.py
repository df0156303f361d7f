"""Makes tests/text/data: two small tokenizers, and hashes of the ids that others give for the strings of random_strings.py.

    python tests/text/make_goldens.py SmolLM2-135M-Instruct.Q4_1.gguf
    python tests/text/make_goldens.py cuttings      # only those of every name of a way to cut text

Needs what fastmixer's tests do not: sentencepiece, xllamacpp (llama.cpp), gguf, tokenizers. Nothing of fastmixer is used:
sentencepiece answers for its own small model, llama.cpp for the GGUF files.
"""

import hashlib
import http.client
import io
import json
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import tokenizers
import xllamacpp
from random_strings import BLOCK, SMOLLM2_LACKS, for_cutting, random_strings, without

HERE = Path(__file__).parent
ALICE = HERE.parents[1] / "fastmixer" / "assets" / "alice29.txt"
# One name (tokenizer.ggml.pre) of every way to cut that is known here.
CUTTINGS = (
    "default gpt-2 mpt smollm command-r llama-bpe dbrx qwen2 hunyuan qwen35 deepseek-llm deepseek-coder deepseek-v3 falcon "
    "tekken gpt-4o bloom viking"
).split()
LLAMA3_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def main(smollm2):
    strings = random_strings()
    book = ALICE.read_bytes().decode().replace("\r\n", "\n")
    goldens = {"smollm2": hashes(llama_cpp(smollm2, without(SMOLLM2_LACKS, [*strings, book])))}
    model, fields = spm(strings)
    goldens["spm"] = hashes([model.encode(text) for text in [*strings, book]])
    write("spm.json", fields)
    fields = llama3()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "llama3.gguf"
        write_gguf(path, fields)
        goldens["llama3"] = hashes(llama_cpp(path, [*strings, book]))
    write("llama3.json", fields)
    write("parity.json", goldens)
    cuttings()


def cuttings():
    """What llama.cpp makes of the vocabulary of llama3.json, cut in every way."""
    fields = json.loads((HERE / "data" / "llama3.json").read_text(encoding="utf-8"))
    texts = [*random_strings(), ALICE.read_bytes().decode().replace("\r\n", "\n")]
    found = {}
    for name in CUTTINGS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_gguf(path, fields | {"tokenizer.ggml.pre": name})
            found[name] = hashes(llama_cpp(path, for_cutting(name, texts)))
    write("cuttings.json", found)


def hashes(rows):
    """One hash for each BLOCK of strings, and one for the book."""
    return [digest(rows[i : i + BLOCK]) for i in range(0, len(rows) - 1, BLOCK)] + [digest(rows[-1:])]


def digest(rows):
    return hashlib.sha256(json.dumps([list(map(int, row)) for row in rows]).encode()).hexdigest()[:16]


def write(name, value):
    (HERE / "data" / name).write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def spm(strings):
    """A small SentencePiece BPE model of the book, as Llama 2's is made, and its GGUF fields."""
    import sentencepiece

    file = io.BytesIO()
    lines = ALICE.read_text().splitlines() + [text for text in strings[:2000] if "\n" not in text]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=file, model_type="bpe", vocab_size=1500, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, character_coverage=0.99,
        allow_whitespace_only_pieces=True, user_defined_symbols=["<tool>"], minloglevel=2,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    count = model.vocab_size()
    types = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in range(count)
    ]
    types[model.piece_to_id("<tool>")] = 4
    return model, {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in range(count)],
        "tokenizer.ggml.scores": [model.get_score(i) for i in range(count)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def llama3():
    """A small byte-level BPE of the book, cut as Llama 3's, with a whole word that no merge makes."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    pre = tokenizers.pre_tokenizers
    inner.pre_tokenizer = pre.Sequence(
        [pre.Split(tokenizers.Regex(LLAMA3_CUT), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=sorted(pre.ByteLevel.alphabet()), show_progress=False
    )
    inner.train_from_iterator([ALICE.read_text()], trainer)
    saved = json.loads(inner.to_str())["model"]
    pieces = sorted(saved["vocab"], key=saved["vocab"].get)
    assert "HTMLParser" not in pieces
    special = ["HTMLParser", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": pieces + special,
        "tokenizer.ggml.token_type": [1] * (len(pieces) + 1) + [3] * 3,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in saved["merges"]],
        "tokenizer.ggml.bos_token_id": len(pieces) + 1,
        "tokenizer.ggml.eos_token_id": len(pieces) + 3,
    }


def write_gguf(path, fields):
    """The smallest llama that llama.cpp loads, with these tokenizer fields."""
    writer = gguf.GGUFWriter(path, "llama")
    vocab, dim, hidden = len(fields["tokenizer.ggml.tokens"]), 64, 64
    writer.add_context_length(65536)
    writer.add_embedding_length(dim)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, value in fields.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_uint32(name, value)
    shapes = {"attn_norm": (dim,), "ffn_norm": (dim,), "ffn_gate": (hidden, dim), "ffn_up": (hidden, dim)}
    shapes |= dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (dim, dim)) | {"ffn_down": (dim, hidden)}
    for name, shape in shapes.items():
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(shape, np.float32))
    for name, shape in (("token_embd", (vocab, dim)), ("output", (vocab, dim)), ("output_norm", (dim,))):
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp(path, texts):
    """llama.cpp's ids for each text, from its server."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.port = str(path), 512, False, 0
    server = xllamacpp.Server(params)
    address = server.listening_address.removeprefix("http://")
    connection = http.client.HTTPConnection(address)
    rows = []
    for text in texts:
        body = json.dumps({"content": text, "add_special": False, "parse_special": True})
        connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
        rows.append(json.loads(connection.getresponse().read())["tokens"])
    return rows


if __name__ == "__main__":
    cuttings() if sys.argv[1] == "cuttings" else main(sys.argv[1])
