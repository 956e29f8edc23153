"""One likelihood for every task: scores per token, on whole recordings, in batches, over ranks, and cached."""
