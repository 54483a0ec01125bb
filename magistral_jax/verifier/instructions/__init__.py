"""Instructions that a program can check: the kinds of IFEval and M-IFEval in four languages."""
