"""Step rehash: steps whose result hardly changes reuse what earlier ones computed."""
