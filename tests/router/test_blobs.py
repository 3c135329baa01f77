"""The blob store: what it keeps, for how long, within what, and what it refuses."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest
from router_fakes import after, erase, request, results

from limner.core.errors import BadArgument, BlobNotFound, BlobStoreFull, ImageTooLarge
from limner.router.blobs import BlobStore
from limner.runtime.status import from_status
from limner.v1 import blobs_pb2, router_pb2


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_store(tmp_path: Path, clock: Clock) -> Any:
    def make(**settings: Any) -> BlobStore:
        defaults = {"quota_bytes": 1000, "max_age": 100.0, "upload_max_age": 10.0, "clock": clock}
        return BlobStore(tmp_path / "blobs", **(defaults | settings))

    return make


@pytest.fixture
def store(open_store: Any) -> BlobStore:
    return open_store()


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "blobs").rglob("*") if path.is_file())


async def test_what_is_put_is_read_and_stored_once(store: BlobStore, tmp_path: Path) -> None:
    assert await store.put(b"photo") == await store.put(b"photo") == digest(b"photo")
    assert await store.read(digest(b"photo")) == b"photo"
    assert files(tmp_path) == [digest(b"photo")]
    assert store.bytes_used == 5


async def test_only_the_user_can_look_into_the_directory(store: BlobStore, tmp_path: Path) -> None:
    await store.put(b"photo")
    for path in (tmp_path / "blobs").rglob("*"):
        assert not path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "blobs").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "blob_id", ["", "abc", "../" * 21 + "a", "A" * 64, "g" * 64, "a" * 65, "a" * 64 + "\n", "/" * 64]
)
async def test_an_id_is_64_lower_case_hexadecimal_digits_or_refused(store: BlobStore, blob_id: str) -> None:
    for attempt in (
        store.upload(blob_id, 3, 0, b"abc"),
        store.read(blob_id),
    ):
        with pytest.raises(BadArgument):
            await attempt
    with pytest.raises(BadArgument):
        store.stat(blob_id)
    await store.delete(blob_id)


async def test_an_upload_in_pieces_is_whole_with_the_last(store: BlobStore) -> None:
    blob_id = digest(b"abcdefgh")
    assert await store.upload(blob_id, 8, 0, b"abc") == (3, False)
    assert not store.has(blob_id)
    assert await store.upload(blob_id, 8, 3, b"def") == (6, False)
    assert await store.upload(blob_id, 8, 6, b"gh") == (8, True)
    assert await store.read(blob_id) == b"abcdefgh"
    assert await store.upload(blob_id, 8, 0, b"abc") == (8, True)


async def test_a_broken_upload_goes_on_from_what_is_there(store: BlobStore) -> None:
    blob_id = digest(b"abcdefgh")
    await store.upload(blob_id, 8, 0, b"abcd")
    assert await store.upload(blob_id, 8, 0, b"") == (4, False)
    assert await store.upload(blob_id, 8, 0, b"abcd") == (4, False)
    assert await store.upload(blob_id, 8, 6, b"gh") == (4, False)
    assert await store.upload(blob_id, 8, 2, b"cdefgh") == (8, True)
    assert await store.read(blob_id) == b"abcdefgh"


async def test_bytes_of_another_digest_are_not_kept(store: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="sha256"):
        await store.upload(digest(b"abc"), 3, 0, b"abd")
    assert not files(tmp_path)
    assert store.bytes_used == 0
    assert await store.upload(digest(b"abc"), 3, 0, b"abc") == (3, True)


@pytest.mark.parametrize(
    ("size", "offset", "data", "field"),
    [(0, 0, b"", "size_bytes"), (3, 2, b"xx", "data"), (3, 4, b"", "data"), (9, 0, b"xx", "size_bytes")],
)
async def test_sizes_that_cannot_be_are_refused(
    store: BlobStore, size: int, offset: int, data: bytes, field: str
) -> None:
    await store.upload(digest(b"abc"), 3, 0, b"a")
    with pytest.raises(BadArgument) as caught:
        await store.upload(digest(b"abc"), size, offset, data)
    assert caught.value.violations[0].field == field


async def test_the_same_blob_uploaded_by_many_at_once_is_whole(store: BlobStore, tmp_path: Path) -> None:
    data = bytes(range(250)) * 3

    async def upload() -> None:
        have, whole = 0, False
        while not whole:
            have, whole = await store.upload(digest(data), len(data), have, data[have : have + 50])

    await asyncio.gather(*(upload() for _ in range(5)))
    assert await store.read(digest(data)) == data
    assert files(tmp_path) == [digest(data)]


async def test_the_least_recently_used_goes_when_the_quota_is_reached(store: BlobStore) -> None:
    first, second, third = b"1" * 400, b"2" * 400, b"3" * 400
    await store.put(first)
    await store.put(second)
    await store.read(digest(first))
    await store.put(third)
    assert [store.has(digest(data)) for data in (first, second, third)] == [True, False, True]
    assert store.bytes_used == 800


async def test_blobs_in_use_stay_and_a_store_full_of_them_says_so(store: BlobStore) -> None:
    await store.put(b"1" * 900)
    with store.pinned([digest(b"1" * 900)]):
        with pytest.raises(BlobStoreFull):
            await store.put(b"2" * 200)
        await store.put(b"3" * 100)
    await store.put(b"2" * 200)
    assert not store.has(digest(b"1" * 900))


async def test_more_than_the_quota_is_refused_at_the_first_piece(store: BlobStore) -> None:
    with pytest.raises(BlobStoreFull):
        await store.upload("a" * 64, 1001, 0, b"x")
    await store.upload("a" * 64, 600, 0, b"x")
    with pytest.raises(BlobStoreFull):
        await store.upload("b" * 64, 600, 0, b"x")


async def test_a_blob_of_more_bytes_than_a_picture_may_have_is_refused(open_store: Any) -> None:
    with pytest.raises(ImageTooLarge) as caught:
        await open_store(max_upload_bytes=100).upload("a" * 64, 101, 0, b"x")
    assert caught.value.metadata == {"limit": "100", "actual": "101"}


async def test_blobs_go_when_they_were_not_used_for_too_long(store: BlobStore, clock: Clock, tmp_path: Path) -> None:
    await store.put(b"old")
    await store.put(b"used")
    clock.now += 60
    await store.read(digest(b"used"))
    assert store.stat(digest(b"used")) == (4, clock.now + 100)
    clock.now += 60
    assert not store.has(digest(b"old"))
    store.drop_old()
    assert files(tmp_path) == [digest(b"used")]


async def test_uploads_nobody_goes_on_with_give_their_room_back(store: BlobStore, clock: Clock, tmp_path: Path) -> None:
    await store.upload(digest(b"x" * 900), 900, 0, b"x")
    assert store.bytes_used == 900
    clock.now += 11
    store.drop_old()
    assert store.bytes_used == 0
    assert not files(tmp_path)


async def test_blobs_survive_a_restart_and_uploads_begin_anew(open_store: Any, clock: Clock, tmp_path: Path) -> None:
    store = open_store()
    for data in (b"first", b"second"):
        await store.put(data)
        clock.now += 1
    await store.read(digest(b"first"))
    await store.upload(digest(b"third"), 5, 0, b"th")
    again = open_store(quota_bytes=8)
    assert [again.has(digest(data)) for data in (b"first", b"second")] == [True, False]
    assert await again.read(digest(b"first")) == b"first"
    assert await again.upload(digest(b"3rd"), 3, 0, b"") == (0, False)


async def test_a_file_that_a_crash_damaged_is_not_handed_out(open_store: Any, tmp_path: Path) -> None:
    blob_id = await open_store().put(b"photo")
    (tmp_path / "blobs" / "objects" / blob_id[:2] / blob_id).write_bytes(b"ph\0\0\0")
    again = open_store()
    with pytest.raises(BlobNotFound, match="damaged"):
        await again.read(blob_id)
    assert not again.has(blob_id)
    await again.put(b"photo")
    assert await again.read(blob_id) == b"photo"


async def test_a_blob_whose_file_was_taken_away_can_be_uploaded_again(store: BlobStore, tmp_path: Path) -> None:
    blob_id = await store.put(b"photo")
    (tmp_path / "blobs" / "objects" / blob_id[:2] / blob_id).unlink()
    with pytest.raises(BlobNotFound):
        await store.read(blob_id)
    assert await store.upload(blob_id, 5, 0, b"photo") == (5, True)
    assert await store.read(blob_id) == b"photo"


async def test_foreign_files_in_the_directory_are_left_alone(open_store: Any, tmp_path: Path) -> None:
    open_store()
    (tmp_path / "blobs" / "objects" / "ab").mkdir()
    (tmp_path / "blobs" / "objects" / "ab" / "README").write_text("mine")
    assert open_store().bytes_used == 0
    assert files(tmp_path) == ["README"]


async def test_a_full_disk_is_told_and_leaves_nothing(store: BlobStore, monkeypatch: Any, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BlobStoreFull, match="disk"):
        await store.put(b"photo")
    assert not files(tmp_path)
    assert store.bytes_used == 0


async def test_a_deleted_blob_in_use_goes_when_that_use_ends(store: BlobStore, tmp_path: Path) -> None:
    blob_id = await store.put(b"photo")
    with store.pinned([blob_id]):
        await store.delete(blob_id)
        assert not store.has(blob_id)
        assert files(tmp_path) == [blob_id]
    assert not files(tmp_path)
    await store.delete(blob_id)


async def test_an_upload_that_is_cancelled_in_mid_write_goes_on_later(store: BlobStore) -> None:
    data = b"x" * 500 + b"y" * 400
    writing = asyncio.create_task(store.upload(digest(data), 900, 0, data[:500]))
    await asyncio.sleep(0)
    writing.cancel()
    have, _ = await store.upload(digest(data), 900, 0, b"")
    assert await store.upload(digest(data), 900, have, data[have:]) == (900, True)


# --- through the router


async def upload(router: Any, data: bytes) -> str:
    response = await router.blobs.UploadBlob(
        blobs_pb2.UploadBlobRequest(blob_id=digest(data), size_bytes=len(data), data=data)
    )
    assert response.complete
    return digest(data)


async def test_blobs_go_up_and_come_down_in_pieces(router: Any) -> None:
    data = bytes(range(256)) * 10_000
    have, whole = 0, False
    while not whole:
        piece = blobs_pb2.UploadBlobRequest(
            blob_id=digest(data), size_bytes=len(data), offset_bytes=have, data=data[have : have + 1_000_000]
        )
        response = await router.blobs.UploadBlob(piece)
        have, whole = response.received_bytes, response.complete
    got = await router.blobs.GetBlob(blobs_pb2.GetBlobRequest(blob_id=digest(data)))
    assert got.size_bytes == len(data)
    down = [
        piece.data
        async for piece in router.blobs.DownloadBlob(
            blobs_pb2.DownloadBlobRequest(blob_id=digest(data), offset_bytes=1000)
        )
    ]
    assert b"".join(down) == data[1000:]
    assert max(map(len, down)) <= 1 << 20
    assert (await router.status()).blob_bytes == len(data)
    await router.blobs.DeleteBlob(blobs_pb2.DeleteBlobRequest(blob_id=digest(data)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.blobs.GetBlob(blobs_pb2.GetBlobRequest(blob_id=digest(data)))
    assert isinstance(from_status(caught.value), BlobNotFound)


async def test_a_blob_is_an_input_and_gone_ones_are_told_by_field(router: Any) -> None:
    asked = request(erase())
    asked.inputs["source"].blob_id = await upload(router, b"a photo from a blob")
    assert results(await router.run(asked)) == {"fill": "png:inpaint(a photo from a blob,hole)"}
    asked.inputs["source"].blob_id = "0" * 64
    _, error = await router.fail(asked)
    assert isinstance(error, BlobNotFound)
    assert "inputs[source].blob_id" in error.message


async def test_a_run_keeps_its_blobs_while_it_works(routers: Any, fake: Any) -> None:
    router = await routers(inpaint=[fake.address], blob_quota_bytes=100)
    fake.script("inpaint", after(0.3))
    asked = request(erase())
    asked.inputs["source"].blob_id = await upload(router, b"x" * 80)
    running = asyncio.create_task(router.run(asked))
    await asyncio.sleep(0.1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upload(router, b"y" * 80)
    assert isinstance(from_status(caught.value), BlobStoreFull)
    await running
    await upload(router, b"y" * 80)


async def test_a_result_there_is_no_room_for_fails_the_run_with_the_reason(routers: Any, fake: Any) -> None:
    router = await routers(inpaint=[fake.address], blob_quota_bytes=10)
    events, error = await router.fail(request(erase(), inline_limit_bytes=0))
    assert isinstance(error, BlobStoreFull)
    assert isinstance(events[-1], router_pb2.RunEvent)
    assert error.metadata["step"] == "fill"
