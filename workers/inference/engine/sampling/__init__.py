"""The parts of the sampler: adjust the logits, mask them, draw, report log-probabilities."""
