"""Problem -> prompt, in an endless, seeded order that can be resumed anywhere."""
