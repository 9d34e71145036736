"""Stands in for Swarm's routing mesh where the kernel has no IPVS: passes connections on to the tasks of a service in turn.

Like the mesh it works on connections, knows nothing of HTTP, and takes Swarm's own word for which tasks there are."""

import asyncio
import itertools
import socket
import sys

NAME, PORT = sys.argv[1], int(sys.argv[2])
turn = itertools.count()


async def tasks():
    found = await asyncio.get_running_loop().getaddrinfo(NAME, PORT, family=socket.AF_INET, type=socket.SOCK_STREAM)
    return sorted({address[0] for *_, address in found})


async def passed(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def serve(reader, writer):
    try:
        addresses = await tasks()
        upstream = await asyncio.open_connection(addresses[next(turn) % len(addresses)], PORT)
    except OSError:
        writer.close()
        return
    await asyncio.gather(passed(reader, upstream[1]), passed(upstream[0], writer))


async def main():
    async with await asyncio.start_server(serve, "0.0.0.0", 8000, backlog=1024) as server:
        await server.serve_forever()


asyncio.run(main())
