"""Packed weights on the disk: mapped instead of packed, the same bits, and never another model's or a damaged file's."""

import errno
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from random_models import random_source

from fastmixer.kernels import select
from fastmixer.model import packed_cache
from fastmixer.model.decoder import Decoder
from fastmixer.model.packed_cache import VARIABLE, PackedCache, cache_folder
from fastmixer.opening import load
from fastmixer.weights.convert import convert
from fastmixer.weights.source import open_source

BEST = [f"native-{level}" for level in select.native_levels("decoder")[:1]]


@pytest.fixture(autouse=True)
def _without_the_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A GGUF file of Q4_0, one of F32, and a folder of F32."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "q4": convert(random_source("llama", "F32"), folder / "q4.gguf", "Q4_0"),
        "f32": convert(random_source("llama", "F32"), folder / "f32.gguf"),
        "folder": convert(random_source("llama", "F32"), folder / "folder"),
    }


def logits_of(decoder):
    ids = np.arange(3, 40)
    tables = np.zeros((1, 1, 1), np.int32)
    arguments = (
        ids,
        np.array([0, len(ids)]),
        np.array([0]),
        decoder.new_pages(1, "float32"),
        tables,
        np.arange(len(ids)),
    )
    return decoder.forward(*arguments)[0]


def decoder_of(path, folder, weights="auto"):
    return Decoder(open_source(path), weights, progress=False, packed_cache=folder)


def arrays_of(decoder):
    return [array for linear in _linears(decoder.spec) for array in linear.weight.arrays.values()]


def _linears(spec):
    yield spec.head
    for layer in spec.layers:
        yield from (layer.q, layer.k, layer.v, layer.output, layer.gate, layer.up, layer.down)


def kept(folder):
    return sorted(folder.glob("*.packed"))


def no_packing(monkeypatch, decoder_class=Decoder):
    def refuse(self, name):
        raise AssertionError(f"{name} is packed again")

    monkeypatch.setattr(decoder_class, "_packed", refuse)


# ---- what is kept is what was packed ----


@pytest.mark.parametrize("implementation", ["reference", "jit", *BEST])
@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_the_second_load_packs_nothing_and_has_the_same_bits(monkeypatch, tmp_path, files, implementation, weights):
    with select.use_kernels(implementation):
        plain = decoder_of(files["q4"], None, weights)
        first = decoder_of(files["q4"], tmp_path, weights)
        (path,) = kept(tmp_path)
        assert implementation in path.name and f"-{weights}-" in path.name
        no_packing(monkeypatch)
        second = decoder_of(files["q4"], tmp_path, weights)
        expected = logits_of(plain)
        for decoder in (first, second):
            np.testing.assert_array_equal(logits_of(decoder), expected)
            assert decoder.kinds == plain.kinds and decoder.nbytes == plain.nbytes
            large = [array for array in arrays_of(decoder) if array.nbytes > packed_cache.IN_HEADER]
            assert large and all(packed_cache._lies_in_a_file(array) for array in large)
            assert not any(array.flags.writeable or array.ctypes.data % 64 for array in large)


def test_each_way_of_keeping_has_a_file_of_its_own(tmp_path, files):
    for weights in ("auto", "int8", "int4", "float32"):
        decoder_of(files["q4"], tmp_path, weights)
    with select.use_kernels("reference"):
        decoder_of(files["q4"], tmp_path)
    assert len(kept(tmp_path)) == 5
    decoder_of(files["f32"], tmp_path, "int8")
    assert len(kept(tmp_path)) == 6


def test_what_is_a_view_of_the_models_file_is_not_written_again(tmp_path, files):
    decoder = decoder_of(files["folder"], tmp_path, "float32")
    assert kept(tmp_path) == []
    assert all(packed_cache._lies_in_a_file(array) for array in arrays_of(decoder))
    for _ in range(2):  # only what is taken from the file in another order, queries and keys
        decoder = decoder_of(files["f32"], tmp_path, "float32")
        np.testing.assert_array_equal(logits_of(decoder), logits_of(decoder_of(files["f32"], None, "float32")))
    assert 3 * (64 + 32) * 64 * 4 < kept(tmp_path)[0].stat().st_size < 3 * (64 + 32) * 64 * 4 + 4096


def test_processes_share_the_file(tmp_path, files):
    """The weights of another process are the pages of the same file."""
    decoder_of(files["q4"], tmp_path)
    code = (
        "import sys; from pathlib import Path; from fastmixer.model.decoder import Decoder\n"
        "from fastmixer.weights.source import open_source\n"
        "decoder = Decoder(open_source(sys.argv[1]), packed_cache=Path(sys.argv[2]))\n"
        "print([line for line in open('/proc/self/maps') if '.packed' in line])\n"
    )
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", code, files["q4"], tmp_path], capture_output=True, text=True, check=True
    )
    assert str(kept(tmp_path)[0]) in done.stdout and "r--s" in done.stdout


# ---- which model it is ----


def test_a_file_that_changes_is_another_model_even_if_its_time_does_not(monkeypatch, tmp_path, files):
    path = tmp_path / "model.gguf"
    path.write_bytes(files["q4"].read_bytes())
    stat = path.stat()
    monkeypatch.setattr(packed_cache, "SETTLED", -1)  # remembered at once
    before = logits_of(decoder_of(path, tmp_path))
    assert len(list(tmp_path.glob("*.seen"))) == 1
    content = bytearray(path.read_bytes())
    content[-40:-30] = bytes(10)
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns and path.stat().st_size == stat.st_size
    after = logits_of(decoder_of(path, tmp_path))
    np.testing.assert_array_equal(after, logits_of(decoder_of(path, None)))
    assert (before != after).any() and len(kept(tmp_path)) == 2


def test_a_file_is_read_whole_once(monkeypatch, tmp_path, files):
    monkeypatch.setattr(packed_cache, "SETTLED", -1)
    decoder_of(files["q4"], tmp_path)
    monkeypatch.setattr(packed_cache, "PIECE", 0)  # which cannot be
    decoder_of(files["q4"], tmp_path)
    for memory in tmp_path.glob("*.seen"):
        memory.write_text("[half")
    with pytest.raises(ValueError, match="must not be zero"):
        decoder_of(files["q4"], tmp_path)


def test_a_file_that_is_being_written_is_not_remembered(monkeypatch, tmp_path, files):
    path = tmp_path / "model.gguf"
    path.write_bytes(files["q4"].read_bytes())
    decoder_of(path, tmp_path)
    assert not list(tmp_path.glob("*.seen"))


def test_a_copy_elsewhere_is_the_same_model(tmp_path, files):
    decoder_of(files["q4"], tmp_path)
    path = tmp_path / "copy.gguf"
    path.write_bytes(files["q4"].read_bytes())
    decoder_of(path, tmp_path)
    assert len(kept(tmp_path)) == 1


@pytest.mark.parametrize("what", ["version", "layout", "code"])
def test_another_version_replaces_what_was_kept(monkeypatch, tmp_path, files, what):
    decoder_of(files["q4"], tmp_path)
    decoder_of(files["q4"], tmp_path, "int8")
    before = kept(tmp_path)
    if what == "version":
        monkeypatch.setattr(packed_cache, "__version__", "99")
    elif what == "layout":
        monkeypatch.setattr(packed_cache, "_layout", lambda implementation: "other")
    else:
        monkeypatch.setattr(packed_cache, "_reading_code", lambda: "other")
    decoder_of(files["q4"], tmp_path)
    after = kept(tmp_path)
    assert len(after) == 2 and len(set(before) & set(after)) == 1  # int8's stands


def test_layouts_differ_between_implementations():
    found = {packed_cache._layout(name) for name in ("reference", *BEST)}
    assert len(found) == 1 + len(BEST)


# ---- damage ----


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


DAMAGE = {
    "empty": (lambda content: b"", "is no file of packed weights: it has 0 bytes"),
    "short": (lambda content: content[:1000], "is no file of packed weights, or not the whole one"),
    "cut": (lambda content: content[:-1], "is no file of packed weights, or not the whole one"),
    "first byte missing": (lambda content: content[1:], "is no file of packed weights, or not the whole one"),
    "foreign": (lambda content: b"GGUF" + bytes(9000), "is no file of packed weights, or not the whole one"),
    "number": (lambda content: flipped(content, 5000), "is damaged: the numbers of .* are not those that were written"),
    "page lost": (lambda content: content[:4096] + bytes(4096) + content[8192:], "is damaged: the numbers of "),
    "header": (lambda content: flipped(content, len(content) - 200), "is damaged: its header has another SHA-256"),
    "checksum": (lambda content: flipped(content, len(content) - 20), "is damaged: its header has another SHA-256"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_made_anew(tmp_path, files, kind):
    expected = logits_of(decoder_of(files["q4"], tmp_path))
    (path,) = kept(tmp_path)
    good = path.read_bytes()
    damage, message = DAMAGE[kind]
    path.unlink()  # what is mapped must not change
    path.write_bytes(damage(good))
    with pytest.warns(RuntimeWarning, match=f"^{re.escape(str(path))} {message}.*; it is made anew$"):
        decoder = decoder_of(files["q4"], tmp_path)
    np.testing.assert_array_equal(logits_of(decoder), expected)
    assert path.read_bytes() == good


def test_another_models_file_under_this_ones_name(tmp_path, files):
    source = random_source("qwen3", "F32")
    decoder_of(convert(source, tmp_path / "other.gguf", "Q4_0"), tmp_path)
    (other,) = kept(tmp_path)
    path = PackedCache(tmp_path, open_source(files["q4"]), "auto", select.implementation("decoder")).path
    other.replace(path)
    with pytest.warns(RuntimeWarning, match=r"holds another model's embedding\.weight|holds another model's layers"):
        decoder = decoder_of(files["q4"], tmp_path)
    np.testing.assert_array_equal(logits_of(decoder), logits_of(decoder_of(files["q4"], None)))


def test_a_full_disk_is_told_and_the_model_runs(monkeypatch, tmp_path, files):
    def full(file, weights):
        file.write(b"x" * 100)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packed_cache, "_write", full)
    with pytest.warns(RuntimeWarning, match=r"^packed weights are not kept: \[Errno 28\] No space left on device$"):
        decoder = decoder_of(files["q4"], tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".seen"] == []
    np.testing.assert_array_equal(logits_of(decoder), logits_of(decoder_of(files["q4"], None)))


def test_an_interruption_leaves_nothing_and_old_leftovers_go(monkeypatch, tmp_path, files):
    old, new = tmp_path / ".writing-1-x", tmp_path / ".writing-2-x"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    with monkeypatch.context() as patched:
        patched.setattr(packed_cache, "_write", lambda file, weights: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            decoder_of(files["q4"], tmp_path)
    assert kept(tmp_path) == [] and len(list(tmp_path.glob(".writing-*"))) == 2
    decoder_of(files["q4"], tmp_path)
    assert not old.exists() and new.exists() and len(kept(tmp_path)) == 1


# ---- how it is asked for ----


def test_where_the_folder_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    usual = tmp_path / "fastmixer" / "packed"
    assert cache_folder(None) is cache_folder(False) is None
    assert cache_folder(True) == usual and cache_folder("x") == Path("x") and cache_folder("~") == Path.home()
    for value, expected in (("0", None), ("", None), ("1", usual), ("/y", Path("/y"))):
        monkeypatch.setenv(VARIABLE, value)
        assert cache_folder(None) == expected and cache_folder(False) is None
    assert cache_folder(True) == Path("/y")
    for value in ("YES", "true", "on", "1"):
        monkeypatch.setenv(VARIABLE, value)
        assert cache_folder(None) == usual
    for value in ("no", "False", "off", "0", ""):
        monkeypatch.setenv(VARIABLE, value)
        assert cache_folder(None) is None and cache_folder(True) == usual
    monkeypatch.setenv(VARIABLE, "maybe")
    with pytest.raises(ValueError, match="^FASTMIXER_PACKED_CACHE must be 1, 0 or a folder's path, with a / in it; got 'maybe'$"):
        cache_folder(None)
    assert cache_folder(False) is None and cache_folder("maybe") == Path("maybe")
    for wrong in (3, "", b"x"):
        with pytest.raises(TypeError, match="^load: packed_cache must be True, False, None or a folder; got "):
            cache_folder(wrong)


def test_load_keeps_them_where_it_is_told(monkeypatch, tmp_path, files):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(files["q4"])
        assert not tmp_path.joinpath("a").exists()
        load(files["q4"], packed_cache=tmp_path / "a")
        monkeypatch.setenv(VARIABLE, str(tmp_path / "b"))
        load(files["q4"])
        load(files["q4"], packed_cache=False)
    assert len(kept(tmp_path / "a")) == len(kept(tmp_path / "b")) == 1
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("beneath", [".", "x", "x/y"])
def test_a_file_where_the_folder_should_be(monkeypatch, tmp_path, files, beneath):
    """One warning, and the model runs."""
    monkeypatch.setattr(packed_cache, "SETTLED", -1)
    (tmp_path / "file").write_text("precious")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / beneath))
    with pytest.warns(RuntimeWarning) as caught:
        load(files["q4"])
    (warning,) = caught
    assert re.match(rf"packed weights are not kept: \[Errno 20\] .*{re.escape(str(tmp_path / 'file'))}", str(warning.message))
    assert (tmp_path / "file").read_text() == "precious" and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_was_read_need_not_be_remembered(monkeypatch, tmp_path, files):
    """Packed weights that lie in a folder where nothing can be written are used all the same."""
    expected = logits_of(decoder_of(files["q4"], tmp_path))
    for path in tmp_path.glob("*.seen"):
        path.unlink()
    monkeypatch.setattr(packed_cache, "SETTLED", -1)

    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    no_packing(monkeypatch)
    with pytest.warns(RuntimeWarning, match=r"q4\.gguf is read whole at every load: \[Errno 13\] Permission denied: ") as caught:
        decoder = decoder_of(files["q4"], tmp_path)
    assert len(caught) == 1
    np.testing.assert_array_equal(logits_of(decoder), expected)


def test_a_file_that_cannot_be_read_is_told(monkeypatch, tmp_path, files):
    expected = logits_of(decoder_of(files["q4"], tmp_path))

    def refuse(path, shapes):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(packed_cache, "_read", refuse)
    with pytest.warns(RuntimeWarning, match=r"Permission denied: '.*\.packed'; it is made anew$"):
        decoder = decoder_of(files["q4"], tmp_path)
    np.testing.assert_array_equal(logits_of(decoder), expected)


def test_leftovers_that_other_processes_take_away_first(monkeypatch, tmp_path, files):
    real = Path.glob

    def glob(self, pattern):
        return [*real(self, pattern), *([tmp_path / ".writing-1-gone"] if self == tmp_path else [])]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with monkeypatch.context() as patched:
            patched.setattr(Path, "glob", glob)
            decoder_of(files["q4"], tmp_path)
        assert len(kept(tmp_path)) == 1
        no_packing(monkeypatch)
        decoder_of(files["q4"], tmp_path)
