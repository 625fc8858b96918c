"""The endpoint to which trainers post how far they are, served by every replica."""
