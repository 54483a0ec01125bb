"""Other engines doing the generator's work, each in a process of its own."""
