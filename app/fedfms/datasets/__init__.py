"""Data for studies without a hospital: public benchmark sets and synthetic hospitals."""
