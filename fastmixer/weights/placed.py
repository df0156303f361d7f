"""Our tensors as parts of a file's: rows of fused ones, transposed ones, norms stored minus one. Knows no names."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fastmixer.model.config import ModelConfig
from fastmixer.weights.quantized import BY_NAME
from fastmixer.weights.stored import StoredTensor, expected_tensors


@dataclass(frozen=True)
class Place:
    """Where one of our tensors lies: in the file's tensor `name`, of the whole shape `shape`.

    rows: those that are ours (None: all); transposed: the file has [in, out], rows are its columns; plus: what is added.
    """

    name: str
    shape: tuple[int, ...]
    rows: slice | None = None
    transposed: bool = False
    plus: float = 0.0


class PlacedTensors(Mapping[str, StoredTensor]):
    """Our tensors by name, made of the file's when asked for: views, but for those that are transposed or added to."""

    def __init__(self, places: Mapping[str, Place], tensor_of: Callable[[str], StoredTensor]):
        self._places, self._tensor_of = dict(places), tensor_of

    def __getitem__(self, name: str) -> StoredTensor:
        place = self._places[name]
        stored = self._tensor_of(place.name)
        if place.transposed:
            stored = _transposed(stored)
        if place.rows is not None:
            stored = stored.take(place.rows)
        if place.plus:
            values = stored.values() + np.float32(place.plus)
            stored = StoredTensor(BY_NAME["F32"], values.reshape(stored.raw.shape[0], -1).view(np.uint8), stored.shape)
        return stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _transposed(stored: StoredTensor) -> StoredTensor:
    rows, columns = stored.shape
    numbers = stored.raw.reshape(rows, columns, stored.type.bytes)
    raw = np.ascontiguousarray(numbers.transpose(1, 0, 2)).reshape(columns, -1)
    return StoredTensor(stored.type, raw, (columns, rows))


def own_places(config: ModelConfig, context: int) -> dict[str, Place]:
    """Places of our tensors in a folder that we wrote: linear weights [in, out], q, k and v side by side. context: of the
    folder, which the configuration's may be shorter than."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    starts = {"q": 0, "k": q, "v": q + kv}
    places = {}
    for ours, shape in expected_tensors(config).items():
        part, kind = ours.split(".")[-2:]
        linear = ours.startswith("layers.") and len(shape) == 2
        if ".attention." in ours and part in starts:
            name = f"{ours.rsplit('.', 2)[0]}.qkv.{kind}"
            whole = (shape[1], q + 2 * kv) if linear else (q + 2 * kv,)
            places[ours] = Place(name, whole, slice(starts[part], starts[part] + shape[0]), linear)
        elif ours == "positions.weight":
            places[ours] = Place(ours, (context, shape[1]), slice(0, shape[0]))
        else:
            places[ours] = Place(ours, shape[::-1] if linear else shape, None, linear)
    return places


def check_places(
    places: Mapping[str, Place], shapes: Mapping[str, tuple[int, ...]], where: Callable[[str], str], what: str
) -> None:
    """ValueError for a tensor that is missing, has another shape, or is not known.

    shapes: of the file's tensors; where(name): the file that has one, or should have; what: whose names these are.
    """
    used = set()
    for place in places.values():
        if place.name not in shapes:
            raise ValueError(f"{where(place.name)}: tensor {place.name} {list(place.shape)} is missing")
        if shapes[place.name] != place.shape:
            raise ValueError(
                f"{where(place.name)}: tensor {place.name} must have shape {list(place.shape)}; "
                f"got {list(shapes[place.name])}"
            )
        used.add(place.name)
    unknown = [name for name in shapes if name not in used]
    if unknown:
        raise ValueError(
            f"{where(unknown[0])}: tensor {unknown[0]} is not known in {what} ({len(unknown)} such tensors)"
        )
