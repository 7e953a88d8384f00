"""Measurements on features: collapse, fine structure, streaming forms, transfer and clustering."""
