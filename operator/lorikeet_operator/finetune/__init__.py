"""FineTuneJob: what is decided, built and reported for one fine-tuning run."""
