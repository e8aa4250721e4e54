"""An OpenAI-compatible embeddings server over one release (extra `serve`)."""
