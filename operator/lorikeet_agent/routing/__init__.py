"""The agent beside a router: brings Envoy from one configuration to the next, and drains it before it stops."""
