"""A TCP proxy that breaks connections on purpose: it cuts them, delays, throttles, truncates or holds back what passes, in either direction."""

import asyncio

CHUNK_BYTES = 64 * 1024


class Way:
    """One direction of a link."""

    def __init__(self):
        self.open, self.truncated = asyncio.Event(), 0
        self.heal()

    def heal(self):
        self.delay_secs, self.bytes_per_sec, self.share = 0.0, None, None
        self.open.set()

    def hold(self):
        """From now on nothing passes. The connections stay open, as if packets were lost."""
        self.open.clear()

    def truncate(self, share):
        """From now on, each connection ends after this share of the next bytes, which may be the middle of a frame."""
        self.share = share

    async def carry(self, reader, writer):
        while chunk := await reader.read(CHUNK_BYTES):
            if self.delay_secs:
                await asyncio.sleep(self.delay_secs)
            if self.bytes_per_sec:
                await asyncio.sleep(len(chunk) / self.bytes_per_sec)
            await self.open.wait()
            if self.share is not None:
                self.truncated += 1
                writer.write(chunk[: int(len(chunk) * self.share)])
                # Not aborted, because that would discard the bytes.
                writer.close()
                await writer.wait_closed()
                raise ConnectionAbortedError
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


class Link:
    """Listens on a port and forwards each connection to an upstream port, which can change."""

    def __init__(self, upstream):
        self.upstream, self.port = upstream, 0
        self.up, self.down = Way(), Way()
        self.refuses, self.connections, self.server, self.accepted = False, {}, None, 0

    async def listen(self):
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    def cut(self):
        """Ends all connections with a reset."""
        for writers in self.connections.values():
            for writer in writers:
                writer.transport.abort()

    def refuse(self):
        """Ends all connections, and each new one at once."""
        self.refuses = True
        self.cut()

    def hold(self, up=True, down=True):
        if up:
            self.up.hold()
        if down:
            self.down.hold()

    def slow(self, delay_secs, bytes_per_sec=None):
        for way in (self.up, self.down):
            way.delay_secs, way.bytes_per_sec = delay_secs, bytes_per_sec

    def heal(self):
        self.refuses = False
        self.up.heal()
        self.down.heal()

    async def _accept(self, reader, writer):
        if self.refuses:
            writer.transport.abort()
            return
        self.accepted += 1
        number = object()
        self.connections[number] = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
            self.connections[number].append(far_writer)
            tasks = [asyncio.ensure_future(self.up.carry(reader, far_writer)), asyncio.ensure_future(self.down.carry(far_reader, writer))]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        except OSError:
            # One side has gone, so the other has to go too.
            pass
        finally:
            for own in self.connections.pop(number):
                own.transport.abort()

    async def close(self):
        self.server.close()
        self.refuse()
        self.heal()
