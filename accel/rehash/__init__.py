"""Step rehash: denoising steps that can be predicted from earlier ones are skipped."""
