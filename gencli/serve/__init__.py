"""An HTTP server with OpenAI's routes that keeps models warm."""
