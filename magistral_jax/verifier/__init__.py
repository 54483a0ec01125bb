"""Completion -> Verdict, in processes of their own that never load jax."""
