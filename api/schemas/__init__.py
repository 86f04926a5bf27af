"""What clients send, parsed once at the edge, and what they get."""
