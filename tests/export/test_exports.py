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
