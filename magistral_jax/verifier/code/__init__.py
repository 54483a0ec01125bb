"""Judges programs: which program a completion holds, and whether it passes the problem's tests."""
