"""Uploads and downloads of files, streamed: no file is ever whole in memory."""
