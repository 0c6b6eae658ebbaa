"""Renders a queue of jobs so that nothing is lost: job files, manifest, resume, engines."""
