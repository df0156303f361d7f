"""Imports point downward only: cli -> train -> model, weights, text, data -> ops -> kernels."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Each package, and what it may import of fastmixer besides itself.
MAY_IMPORT = {
    "kernels": set(),
    "ops": {"kernels"},
    "text": {"ops", "kernels"},
    "data": {"weights", "text", "ops", "kernels"},
    "weights": {"ops", "kernels", "text"},
    "model": {"weights", "text", "data", "ops", "kernels", "progress"},
    "memory": {"kernels"},
    "generate": {"memory", "model", "text", "ops", "kernels"},
    "embed": {"model", "weights", "text", "ops", "kernels", "progress"},
    "opening": {"embed", "generate", "model", "weights", "ops", "kernels"},
    "train": {"memory", "embed", "model", "weights", "text", "data", "ops", "kernels"},
    "sklearn": {"opening", "embed"},
    "config_report": {"kernels"},
    "bench": {"opening", "generate", "embed", "train", "model", "weights", "text", "data", "ops", "kernels", "config_report", "chart"},
    "chart": set(),
    "progress": set(),
    "quickstart": {"chart", "train", "model", "weights", "text", "data", "ops", "kernels"},
    "cli": {
        "memory",
        "opening",
        "embed",
        "generate",
        "bench",
        "quickstart",
        "train",
        "model",
        "weights",
        "text",
        "data",
        "ops",
        "kernels",
        "config_report",
        "chart",
        "progress",
    },
}
# Single modules that a package may import of one that stands above it: a configuration knows no arrays, and
# Transformer.generate is a face that leads up to what writes, LanguageModel.embed one to what makes vectors.
MAY_IMPORT_MODULES = {
    "weights": {"fastmixer.model.config", "fastmixer.model.encoder_config"},
    "model": {"fastmixer.generate.language_model", "fastmixer.generate.stream"},
    "generate": {"fastmixer.embed.sentence_model", "fastmixer.weights.encoder_recipe"},
}
# The one package whose top-level name stands for "version" and lazy lookups; anything may ask it for __version__.
ROOT_NAMES = {"__version__"}


def modules():
    for top, folder in (("kernels", ROOT / "kernels"), *((None, path) for path in [ROOT / "fastmixer"])):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            package = top or parts[0]
            if package != "__init__":
                yield package, path


def imported_packages(path, allowed=()):
    """Names of the fastmixer packages that a module imports, anywhere in it, but for these modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fastmixer":
            if node.module == "fastmixer":
                yield from (alias.name for alias in node.names if alias.name not in ROOT_NAMES)
            else:
                if node.module not in allowed:
                    yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                assert parts[0] != "kernels", f"{path}: import it as fastmixer.kernels"
                if parts[0] == "fastmixer":
                    assert len(parts) > 1, f"{path}: import what you need from its module, not the whole face"
                    yield parts[1]


def test_every_package_has_its_place():
    assert {package for package, _ in modules()} <= set(MAY_IMPORT)


def test_imports_point_downward():
    wrong = [
        f"{path.relative_to(ROOT)} imports fastmixer.{imported}"
        for package, path in modules()
        for imported in imported_packages(path, MAY_IMPORT_MODULES.get(package, set()))
        if imported != package and imported not in MAY_IMPORT[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_numba_is_imported_by_jit_modules_only():
    importing = [
        path.relative_to(ROOT)
        for package, path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "numba" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "numba")
    ]
    assert all("jit" in path.stem for path in importing), importing


def test_there_is_no_folder_that_shadows_the_kernels():
    assert not (ROOT / "fastmixer" / "kernels").exists()
