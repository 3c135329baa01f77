"""Cards and exports tell the same of each model."""

from __future__ import annotations

from limner.export.exports import EXPORTS
from limner.models.offers import gather


def test_every_card_with_exports_has_just_these_made_of_its_files():
    cards = {offer.card.name: offer.card for offer in gather()[0] if offer.card.exports}
    assert set(cards) == set(EXPORTS)
    for name, card in cards.items():
        assert tuple(export.onnx for export in EXPORTS[name]) == card.exports
        assert {export.file for export in EXPORTS[name]} == {file.name for file in card.files}
        assert all(export.inputs().keys() >= export.dynamic.keys() - set(export.outputs) for export in EXPORTS[name])


def test_every_card_with_exports_says_what_its_network_takes():
    """Until a model was loaded and measured, calls are admitted by these figures."""
    for offer in gather()[0]:
        if offer.card.exports:
            assert offer.card.memory_estimate_bytes > 16 << 20, offer.card.name
            assert 500 < offer.card.memory_per_pixel_bytes < 20_000, offer.card.name
            assert offer.card.size_multiple > 1, offer.card.name
            assert offer.card.minimum_side > 1, offer.card.name
