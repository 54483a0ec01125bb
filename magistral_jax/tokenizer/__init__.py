"""Text <-> tokens, and conversations -> prompts. Text never becomes a control token."""
