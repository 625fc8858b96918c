"""The Lorikeet operator."""
