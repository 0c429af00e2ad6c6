"""Existing clients in Python, with `websockets`.

Reads `[name, what, value]` as lines of JSON: open (an address), send (a text), close.
Tells what happens in the same way: opened, text, closed (with the code)."""

import asyncio
import json
import sys

import websockets


def tell(name, what, value=None):
    print(json.dumps([name, what, value]), flush=True)


async def listen(name, url, sockets):
    async with websockets.connect(url) as socket:
        sockets[name] = socket
        tell(name, "opened")
        try:
            while True:
                tell(name, "text", await socket.recv())
        except websockets.ConnectionClosed as closed:
            tell(name, "closed", closed.rcvd and closed.rcvd.code)


async def main():
    sockets, tasks = {}, []
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, what, value = json.loads(line)
        if what == "open":
            tasks.append(asyncio.create_task(listen(name, value, sockets)))
        elif what == "send":
            await sockets[name].send(value)
        elif what == "close":
            tasks.append(asyncio.create_task(sockets[name].close()))


asyncio.run(main())
