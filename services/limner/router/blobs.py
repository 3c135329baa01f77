"""Pictures on disk under the sha256 of their bytes, within a quota and an age.

Knows bytes and digests, not pictures, runs or gRPC. The index is in memory and is rebuilt from the directory when the
router starts; a file's modification time is when the blob was last used. All disk work is done on threads.

    blobs/            DIR, mode 0700
      objects/ab/abcd...   whole blobs, put there by rename
      partial/abcd...      uploads under way; an upload does not survive a restart, and goes on from 0
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from limner.core.errors import BadArgument, BlobNotFound, BlobStoreFull, ImageTooLarge

PIECE_BYTES = 1 << 20
_ID = re.compile(r"[0-9a-f]{64}\Z")
T = TypeVar("T")


def is_blob_id(text: str) -> bool:
    """Tell whether `text` is 64 lower-case hexadecimal digits, and so safe as a file's name."""
    return _ID.match(text) is not None


@dataclass
class _Blob:
    size: int
    last_used: float  # seconds since the epoch
    pins: int = 0  # runs and downloads that use it now
    doomed: bool = False  # deleted while in use: goes when the last of them is done
    verified: bool = True  # False for what an earlier process left, until it has been read and its digest was right


@dataclass
class _Upload:
    size: int  # declared, and reserved in the quota
    path: Path
    last_used: float
    received: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class BlobStore:
    """The store. Methods that touch the disk are coroutines; the others only look at the index."""

    def __init__(
        self,
        root: Path,
        *,
        quota_bytes: int,
        max_age: float,
        upload_max_age: float,
        max_upload_bytes: int = 1 << 62,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Ages are in seconds. Raises OSError if the directory can't be made or written."""
        self.quota_bytes = quota_bytes
        self._max_age = max_age
        self._upload_max_age = upload_max_age
        self._max_upload_bytes = max_upload_bytes
        self._clock = clock
        self._objects = root / "objects"
        self._partial = root / "partial"
        self._blobs: OrderedDict[str, _Blob] = OrderedDict()  # least recently used first
        self._uploads: dict[str, _Upload] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(mode=0o700)
        self._objects.mkdir(mode=0o700, exist_ok=True)
        self._scan()

    @property
    def bytes_used(self) -> int:
        """Return the bytes of all blobs, and of uploads as far as they were declared."""
        return sum(blob.size for blob in self._blobs.values()) + sum(upload.size for upload in self._uploads.values())

    def has(self, blob_id: str) -> bool:
        """Tell whether a blob is there."""
        blob = self._blobs.get(blob_id)
        return blob is not None and not blob.doomed and not self._is_old(blob)

    def stat(self, blob_id: str) -> tuple[int, float]:
        """Return a blob's size in bytes and when it will be dropped, in seconds since the epoch."""
        blob = self._get(blob_id)
        return blob.size, blob.last_used + self._max_age

    @contextlib.contextmanager
    def pinned(self, blob_ids: list[str]) -> Iterator[None]:
        """Keep blobs from being dropped for the time of the block. Raises BlobNotFound."""
        blobs = [(blob_id, self._get(blob_id)) for blob_id in blob_ids]
        for _, blob in blobs:
            blob.pins += 1
        try:
            yield
        finally:
            for blob_id, blob in blobs:
                blob.pins -= 1
                if blob.doomed and not blob.pins:
                    self._drop(blob_id)

    async def read(self, blob_id: str) -> bytes:
        """Return a blob's bytes."""
        with self.pinned([blob_id]):
            await self._verify(blob_id)
            return await asyncio.to_thread(self._path(blob_id).read_bytes)

    async def pieces(self, blob_id: str, offset: int = 0) -> AsyncIterator[bytes]:
        """Yield a blob's bytes from `offset` on, in pieces of at most 1 MiB."""
        size = self._get(blob_id).size
        if offset > size:
            raise BadArgument(f"the offset is {offset}, but the blob has {size} bytes", field="offset_bytes")
        with self.pinned([blob_id]):
            await self._verify(blob_id)
            file = await asyncio.to_thread(self._path(blob_id).open, "rb")
            with file:
                await asyncio.to_thread(file.seek, offset)
                while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                    yield piece

    async def put(self, data: bytes) -> str:
        """Store bytes and return their blob's id."""
        blob_id = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        if self.has(blob_id) and self._touch(blob_id):
            return blob_id
        self._make_room(len(data))
        # Counted before it is written, so that what is stored at the same time does not overrun the quota.
        upload = _Upload(len(data), self._partial_path(blob_id), self._clock())
        key = f"{blob_id} {upload.path.name}"
        self._uploads[key] = upload

        async def write() -> str:
            try:
                await self._to_disk(lambda: upload.path.write_bytes(data))
                await self._finish(blob_id, upload)
            finally:
                self._uploads.pop(key, None)
                await asyncio.to_thread(upload.path.unlink, missing_ok=True)
            return blob_id

        return await self._to_its_end(write())

    async def upload(self, blob_id: str, size: int, offset: int, data: bytes) -> tuple[int, bool]:
        """Take a piece of a blob and return how many bytes are there from the beginning, and whether it is whole.

        What is already there is skipped. A piece that begins after what is there is not taken: the answer tells where
        to go on. Raises BadArgument if sizes or the digest are wrong, ImageTooLarge, BlobStoreFull if there is no room.
        """
        if not is_blob_id(blob_id):
            raise BadArgument("the blob id is not 64 lower-case hexadecimal digits", field="blob_id")
        if self.has(blob_id) and self._touch(blob_id):
            return self._blobs[blob_id].size, True
        if size < 1:
            raise BadArgument("the size is 0; give the whole blob's size in bytes", field="size_bytes")
        if size > self._max_upload_bytes:
            raise ImageTooLarge(
                f"the blob has {size} bytes, and pictures may have {self._max_upload_bytes}; send a denser format",
                field="size_bytes",
                metadata={"limit": str(self._max_upload_bytes), "actual": str(size)},
            )
        if offset + len(data) > size:
            raise BadArgument(f"the piece ends at {offset + len(data)}, beyond the blob's {size} bytes", field="data")
        upload = self._uploads.get(blob_id)
        if upload is None:
            self._make_room(size)
            upload = self._uploads[blob_id] = _Upload(size, self._partial_path(blob_id), self._clock())
        if upload.size != size:
            raise BadArgument(
                f"the size is {size}, but this upload began with {upload.size}; keep to one", field="size_bytes"
            )
        return await self._to_its_end(self._append(blob_id, upload, offset, data))

    async def delete(self, blob_id: str) -> None:
        """Delete a blob, or the upload of one. One that is in use goes when that use ends."""
        blob = self._blobs.get(blob_id)
        if blob is not None:
            blob.doomed = True
            if not blob.pins:
                self._drop(blob_id)
        upload = self._uploads.get(blob_id)
        if upload is not None and not upload.lock.locked():
            self._abandon(blob_id)

    def drop_old(self) -> None:
        """Drop blobs and uploads that were not used for too long. To be called now and then."""
        now = self._clock()
        for blob_id in [blob_id for blob_id, blob in self._blobs.items() if not blob.pins and self._is_old(blob)]:
            self._drop(blob_id)
        for blob_id, upload in list(self._uploads.items()):
            if now - upload.last_used > self._upload_max_age and not upload.lock.locked():
                self._abandon(blob_id)

    def _scan(self) -> None:
        found = []
        for path in self._objects.glob("??/*"):
            if not is_blob_id(path.name) or path.is_symlink() or not path.is_file():
                continue
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path.name))
        for last_used, size, blob_id in sorted(found):
            self._blobs[blob_id] = _Blob(size, last_used, verified=False)
        self.drop_old()
        with contextlib.suppress(BlobStoreFull):
            self._make_room(0)  # the quota may have become smaller

    def _get(self, blob_id: str) -> _Blob:
        if not is_blob_id(blob_id):
            raise BadArgument("the blob id is not 64 lower-case hexadecimal digits", field="blob_id")
        if not self.has(blob_id) or not self._touch(blob_id):
            raise BlobNotFound(
                f"no blob {blob_id} here: it was never uploaded, or has expired or been deleted; upload it again",
                metadata={"blob_id": blob_id},
            )
        return self._blobs[blob_id]

    def _touch(self, blob_id: str) -> bool:
        """Note that a blob is used now. Returns False if somebody took its file away."""
        blob = self._blobs[blob_id]
        blob.last_used = self._clock()
        self._blobs.move_to_end(blob_id)
        try:
            os.utime(self._path(blob_id), (blob.last_used, blob.last_used))
        except FileNotFoundError:
            blob.doomed = True
            if not blob.pins:
                self._drop(blob_id)
            return False
        return True

    def _is_old(self, blob: _Blob) -> bool:
        return not blob.pins and self._clock() - blob.last_used > self._max_age

    def _path(self, blob_id: str) -> Path:
        return self._objects / blob_id[:2] / blob_id

    def _partial_path(self, blob_id: str) -> Path:
        handle, name = tempfile.mkstemp(prefix=f"{blob_id}-", dir=self._partial)
        os.close(handle)
        return Path(name)

    def _make_room(self, size: int) -> None:
        """Drop old and then least recently used blobs until `size` more bytes fit. Raises BlobStoreFull."""
        if size > self.quota_bytes:
            raise BlobStoreFull(
                f"the blob has {size} bytes, the store holds {self.quota_bytes}; raise router.blob_quota_bytes"
            )
        self.drop_old()
        used = self.bytes_used
        evictable = [blob_id for blob_id, blob in self._blobs.items() if not blob.pins]
        if used + size - sum(self._blobs[blob_id].size for blob_id in evictable) > self.quota_bytes:
            raise BlobStoreFull(
                f"no room for {size} bytes: the store of {self.quota_bytes} bytes is full of blobs that are in use and "
                "uploads under way; try again later, or raise router.blob_quota_bytes",
                retry_after=1.0,
            )
        for blob_id in evictable:
            if used + size <= self.quota_bytes:
                return
            used -= self._blobs[blob_id].size
            self._drop(blob_id)

    def _drop(self, blob_id: str) -> None:
        del self._blobs[blob_id]
        self._path(blob_id).unlink(missing_ok=True)

    def _abandon(self, blob_id: str) -> None:
        upload = self._uploads.pop(blob_id)
        upload.path.unlink(missing_ok=True)

    async def _verify(self, blob_id: str) -> None:
        """Check what an earlier process left: a crash of the machine can leave a file with holes."""
        blob = self._blobs[blob_id]
        if blob.verified:
            return

        def digest() -> str:
            with self._path(blob_id).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        try:
            whole = await asyncio.to_thread(digest) == blob_id
        except FileNotFoundError:
            whole = False
        if not whole:
            blob.doomed = True
            raise BlobNotFound(
                f"blob {blob_id} was damaged on the router's disk and is dropped; upload it again",
                metadata={"blob_id": blob_id},
            )
        blob.verified = True

    async def _append(self, blob_id: str, upload: _Upload, offset: int, data: bytes) -> tuple[int, bool]:
        async with upload.lock:
            if self.has(blob_id):  # another upload of the same blob came first
                return self._blobs[blob_id].size, True
            if self._uploads.get(blob_id) is not upload:  # given up while this piece waited: it starts anew
                return 0, False
            upload.last_used = self._clock()
            if offset <= upload.received < offset + len(data):
                new = data[upload.received - offset :]

                def write() -> None:
                    with upload.path.open("r+b") as file:
                        file.seek(upload.received)
                        file.write(new)
                    upload.digest.update(new)

                await self._to_disk(write)
                upload.received += len(new)
            if upload.received < upload.size:
                return upload.received, False
            digest = upload.digest.hexdigest()
            if digest != blob_id:
                self._abandon(blob_id)
                raise BadArgument(
                    f"the bytes' sha256 is {digest}, not the blob id; nothing was kept: send it again from 0",
                    field="blob_id",
                )
            await self._finish(blob_id, upload)
            self._uploads.pop(blob_id, None)
            return upload.size, True

    async def _finish(self, blob_id: str, upload: _Upload) -> None:
        path, now = self._path(blob_id), self._clock()

        def move() -> None:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            upload.path.replace(path)
            os.utime(path, (now, now))

        await self._to_disk(move)
        # It may be there already, damaged or about to go, and pinned by those who use it: theirs is this object.
        blob = self._blobs.setdefault(blob_id, _Blob(upload.size, now))
        blob.last_used, blob.doomed, blob.verified = now, False, True
        self._blobs.move_to_end(blob_id)

    async def _to_disk(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise BlobStoreFull(
                f"the disk of {self._objects.parent} is full; free some space, or set router.blob_dir elsewhere"
            ) from error

    async def _to_its_end(self, work: Awaitable[T]) -> T:
        """Await `work`, which goes on if the caller is cancelled: a thread can't be stopped in mid-write."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)
