"""An HTTP server with OpenAI's routes, Anthropic's and ollama's that keeps models warm."""
