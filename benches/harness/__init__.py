"""Makes scenarios, runs both schedulers on them, and bounds their prices from below."""
