"""Things that answer prompts."""
