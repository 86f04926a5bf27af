"""The inference worker: claims jobs, drives the engine, publishes tokens, commits results."""
