"""Where models, data and ranks meet: loading, features, prefixes."""
