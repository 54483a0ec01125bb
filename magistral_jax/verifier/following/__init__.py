"""Whether an answer keeps the rules of its prompt that a program can check (IFEval, M-IFEval)."""
