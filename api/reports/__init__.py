"""Usage and costs as clients see them: pages of buckets, OpenAI's result objects, CSV."""
