"""Real model files for tests: those of fastmixer/bench/model_files.py.

Tests ask for a file by a fixture of tests/conftest.py and are skipped, saying why, where it can neither be found nor
downloaded. A file is checked by its SHA-256 each time a test run first asks for it.
"""

from fastmixer.bench.model_files import MINILM, SMOLLM2, NotAvailable, cached_folder, cached_model

__all__ = ["MINILM", "SMOLLM2", "NotAvailable", "cached_folder", "cached_model"]
