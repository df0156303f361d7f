"""Models by name: huggingface_hub's real cache layout in offline mode, and its errors in our words. No network is used."""

import shutil
import types
from pathlib import Path

import pytest

from fastmixer.weights import hub
from fastmixer.weights.source import open_source

huggingface_hub = pytest.importorskip("huggingface_hub")
TINY = Path(__file__).parents[1] / "model" / "tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that holds team/tiny at main, as huggingface_hub lays it out."""
    repo = tmp_path / "hub" / "models--team--tiny"
    shutil.copytree(TINY / "llama", repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    original = huggingface_hub.snapshot_download

    def with_cache(*args, **options):
        return original(*args, cache_dir=str(tmp_path / "hub"), **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", with_cache)
    return repo


def test_a_cached_model_opens_offline(cache):
    source = open_source("team/tiny", offline=True)
    assert source.name == "team/tiny" and source.config.layers == 3 and source.path.name == COMMIT
    assert open_source("team/tiny", offline=True, revision=COMMIT).config == source.config


def test_the_environment_says_offline_too(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert open_source("team/tiny").config.layers == 3


def test_what_is_not_cached_is_an_error_offline(cache):
    with pytest.raises(
        FileNotFoundError, match="^team/other is not in the cache, and offline mode allows no download$"
    ):
        open_source("team/other", offline=True)
    with pytest.raises(FileNotFoundError, match="^team/tiny at revision v2 is not in the cache"):
        open_source("team/tiny", offline=True, revision="v2")


def test_a_cache_without_a_config_is_an_error(cache):
    (cache / "snapshots" / COMMIT / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="^team/tiny: the cache holds no config.json"):
        open_source("team/tiny", offline=True)


def hub_error(kind):
    """One of the library's errors, with an answer of a server as far as it looks at one."""
    return kind("no", response=types.SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (
            "RepositoryNotFoundError",
            FileNotFoundError,
            "team/x is no folder or file here, and no model on huggingface.co",
        ),
        ("RevisionNotFoundError", FileNotFoundError, "team/x has no revision 'v9' on huggingface.co"),
        ("GatedRepoError", PermissionError, "team/x at revision v9 asks for its terms to be accepted"),
        ("HfHubHTTPError", ConnectionError, "team/x at revision v9 could not be fetched from huggingface.co"),
        (
            "LocalEntryNotFoundError",
            ConnectionError,
            "team/x at revision v9 is not in the cache, and huggingface.co could",
        ),
    ],
)
def test_the_librarys_errors_become_ours(monkeypatch, kind, error, message):
    from huggingface_hub import errors

    raised = errors.LocalEntryNotFoundError("no") if kind.startswith("Local") else hub_error(getattr(errors, kind))
    calls = []

    def failing(name, **options):
        calls.append((name, options))
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    with pytest.raises(error, match=f"^{message}"):
        open_source("team/x", offline=False, revision="v9")
    assert calls == [("team/x", {"revision": "v9", "allow_patterns": hub.FILES, "local_files_only": False})]


def test_no_pickle_is_ever_fetched():
    from fnmatch import fnmatch

    wanted = ["model-00001-of-00002.safetensors", "tokenizer.json", "config.json"]
    assert all(any(fnmatch(name, pattern) for pattern in hub.FILES) for name in wanted)
    assert not any(fnmatch(name, pattern) for name in ("pytorch_model.bin", "a.py", "x.gguf") for pattern in hub.FILES)


@pytest.mark.parametrize("name", ["model", "a/b/c", "../b", "a/..", "a/", "/b", "a b/c", "a/b--c", "a/b\n", ""])
def test_names_that_are_none(name):
    assert not hub.is_hub_name(name)
    if name not in ("", "/b", "../b", "a/.."):
        with pytest.raises(FileNotFoundError, match="does not exist .expected a .gguf file"):
            open_source(name, offline=True)


def test_a_full_disk_is_no_lack_of_network(monkeypatch):
    def failing(name, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    with pytest.raises(OSError, match="No space left") as caught:
        open_source("team/x", offline=False)
    assert not isinstance(caught.value, ConnectionError)


def test_errors_of_the_http_library_become_ours(monkeypatch):
    class ProxyError(Exception):
        pass

    def failing(name, **options):
        raise ProxyError("407")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    with pytest.raises(ConnectionError, match="^team/x could not be fetched from huggingface.co: ProxyError: 407$"):
        open_source("team/x", offline=False)
