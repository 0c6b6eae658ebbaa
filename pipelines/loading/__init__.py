"""From a model's name and how a job wants it loaded to a pipeline."""
