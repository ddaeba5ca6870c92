"""Benchmark sets and synthetic hospitals: what a study trains on when no hospital is at hand."""
