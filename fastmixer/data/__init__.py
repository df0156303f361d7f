"""Text files -> memory-mapped shards of token ids -> batches. Knows nothing of models."""

from fastmixer.data.reader import BatchReader, iterate_batches
from fastmixer.data.shards import Dataset, TokenShard, open_dataset, write_dataset

__all__ = ["BatchReader", "Dataset", "TokenShard", "iterate_batches", "open_dataset", "write_dataset"]
