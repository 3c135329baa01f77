from hypothesis import given
from hypothesis import strategies as st

from limner.core.geometry import Box, Size, padding_to_multiple

sides = st.integers(1, 300)
boxes = st.builds(Box, st.integers(0, 50), st.integers(0, 50), st.integers(1, 50), st.integers(1, 50))


@given(boxes, st.integers(0, 100))
def test_a_grown_box_stays_inside_the_picture_and_holds_the_box(box: Box, margin: int) -> None:
    picture = Size(100, 100)
    grown = box.grown(margin, picture)
    assert grown.x <= box.x
    assert grown.y <= box.y
    assert grown.right >= box.right
    assert grown.bottom >= box.bottom
    assert min(grown.x, grown.y) >= 0
    assert max(grown.right, grown.bottom) <= 100


@given(boxes, boxes)
def test_boxes_overlap_exactly_if_they_share_pixels(one: Box, other: Box) -> None:
    columns = set(range(one.x, one.right)) & set(range(other.x, other.right))
    rows = set(range(one.y, one.bottom)) & set(range(other.y, other.bottom))
    assert one.overlaps(other) == bool(columns and rows)


@given(sides, sides, st.integers(1, 64), st.integers(1, 128))
def test_padding_is_the_least_that_fits(width: int, height: int, multiple: int, minimum: int) -> None:
    padded = padding_to_multiple(Size(width, height), multiple, minimum)
    for side, least in ((padded.width, width), (padded.height, height)):
        assert side % multiple == 0
        assert side >= max(least, minimum)
        assert side - multiple < max(least, minimum)


def test_scaling_rounds_and_never_loses_the_last_pixel() -> None:
    assert Size(3, 5).scaled(2.5) == Size(8, 12)
    assert Size(3, 5).scaled(0.01) == Size(1, 1)
