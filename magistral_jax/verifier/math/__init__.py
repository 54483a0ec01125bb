"""Whether two math answers are the same: cheap stages first, parsers and points last."""
