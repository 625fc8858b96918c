"""The development cluster, its images and the scenarios that run on it."""
