"""Data frames -> `report.html`: one self-contained page that opens offline."""
