"""longtake teaches video-language models to reason over videos of minutes to hours, on the hardware you have."""

__version__ = "0.1.0"
