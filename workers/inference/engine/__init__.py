"""The inference engine: continuous batching on one device. Imports nothing else of Millrace."""
