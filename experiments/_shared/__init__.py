"""What several experiments use: ranks, counts of seeds, stored units of work, processes that score, pixels."""
