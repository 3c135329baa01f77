"""A call from admission to its last event, over a real channel."""

from __future__ import annotations


async def kinds(call):
    return [(response.WhichOneof("event"), response) async for response in call]


async def test_events_come_in_the_order_of_the_contract(house):
    events = await kinds(house.call(b"abc"))
    names = [name for name, _ in events]
    assert names[0] == "queued"
    assert names.index("started") < names.index("progress") < names.index("result")
    assert names[-2:] == ["result", "finished"]
    assert set(names) <= {"queued", "started", "progress", "preview", "result", "finished"}
    assert events[-2][1].result.image.encoded == b"cba"
