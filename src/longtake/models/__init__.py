"""One device's networks, one file a family, each behind protocols.Model."""
