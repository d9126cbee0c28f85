"""Data frames -> terminal tables and files. Computes nothing new."""
