"""One ModelDeployment: what serves a base model and its adapters, and what leads requests to them."""
