"""The server around the ASGI application: `python -m api.server`.

uvicorn speaks HTTP; what it leaves open is closed here. Whatever a peer does or leaves undone, a
connection ends or moves on in bounded time and memory, and their number stays below what the
process may open:

- `descriptors.py`: how many connections the process can carry, found out before the first one;
- `connections.py`: who is connected, and whom to let go for a newcomer;
- `refusals.py`: thousands who are refused in one moment, one behind the other;
- `protocol.py`: one connection, held to `bounds.py`.
"""
