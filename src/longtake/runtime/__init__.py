"""Where models and data meet: loading, features, prompts."""
