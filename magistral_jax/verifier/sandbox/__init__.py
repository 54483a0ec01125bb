"""Runs untrusted programs, and brings back what they printed. `client.Sandbox` is the way in."""
