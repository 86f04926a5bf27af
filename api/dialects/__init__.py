"""Jobs in the words of the API their clients know.

Each dialect shows a finished job as one object and a running one as a stream, which is a pure fold
over the job's native events: any replica replays the same objects under the same numbers.
"""
