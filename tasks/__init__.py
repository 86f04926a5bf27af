"""The contract between processes: task names, queues, events, streams, keys, errors.

Imports no other package of Millrace, no torch, no SQLAlchemy, no FastAPI.
"""
