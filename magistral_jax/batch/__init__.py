"""Verdicts to batches: groups in dispatch order, credit, rows. Host side, numpy only."""
