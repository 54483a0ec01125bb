"""How values move between rooms: in turn, all at once, or all at once by a logical clock."""
