"""Weights out: our parameter tree as the tensors of a Hugging Face folder."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from magistral_jax.model.names import Entry, Place, table
from magistral_jax.model.params import Architecture, Params
from magistral_jax.model.safetensors_file import Made


def tensors_of(params: Params, arch: Architecture) -> Iterator[Made]:
    """Name, shape and maker of each tensor; a maker fetches its one layer from the devices.

    `params` has stacked layers, the trainer's layout.
    """
    entries = table(arch)
    for place, entry in entries.items():
        if not entry.is_per_layer:
            yield entry.hf, entry.shape, partial(_tensor, params, place, entry, None)
    for layer in range(arch.layers):
        for place, entry in entries.items():
            if entry.is_per_layer:
                name = entry.hf.format(layer=layer)
                yield name, entry.shape, partial(_tensor, params, place, entry, layer)


def _tensor(params: Params, place: Place, entry: Entry, layer: int | None) -> np.ndarray:
    array: Any = params
    for key in place:
        array = array[key]
    return entry.back(np.asarray(array if layer is None else array[layer]))
