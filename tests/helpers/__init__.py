"""What several tests share: small models, pages, processes to kill, runs and tensors."""
