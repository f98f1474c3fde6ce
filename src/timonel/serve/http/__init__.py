"""An engine over HTTP: OpenAI's images API, AUTOMATIC1111's, and timonel's own control of runs."""
